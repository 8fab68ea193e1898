//! Places for connections: who gets one, and who gives one up.
//!
//! Knows addresses and nothing of HTTP. A connection is a stranger's until a sender was verified on it and got one
//! of the slots for uploads or downloads; slots are fewer than places. When every place is taken, a newcomer gets
//! that of a stranger: of those from the address that has most strangers here, the one who has been a stranger for
//! longest. So whoever floods from a few addresses takes places from itself, and one who has thousands of them must
//! fill every place anew in the moment that an honest client needs to say who it is; were the youngest given up, a
//! single connection in that moment would do. An honest client never waits for a place.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::{error::Error, metrics};

/// All places.
#[derive(Debug, Clone)]
pub(crate) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: usize,
    per_address: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Numbers connections, and the moments at which they became strangers.
    next: u64,
    connections: HashMap<u64, Connection>,
    addresses: HashMap<IpAddr, Address>,
}

#[derive(Debug)]
struct Connection {
    address: IpAddr,
    /// Since when it is a stranger's.
    since: u64,
    /// Slots that are held through it: none, and it is a stranger's.
    slots: usize,
    leave: CancellationToken,
}

/// Who is here from one address.
#[derive(Debug, Default)]
struct Address {
    connections: usize,
    /// Those of strangers, by the moment since when.
    strangers: BTreeMap<u64, u64>,
}

impl Places {
    /// `all` places, of which one address may have `per_address`.
    pub(crate) fn new(all: usize, per_address: usize) -> Self {
        let table = Mutex::default();
        Self(Arc::new(Inner { all: all.max(1), per_address: per_address.max(1), table }))
    }

    /// A place for a connection from `address`, where a stranger gives his up if there is no other.
    pub(crate) fn enter(&self, address: IpAddr) -> Result<Place, Error> {
        let mut table = self.lock();
        let here = table.addresses.get(&address).map_or(0, |address| address.connections);
        if here >= self.0.per_address {
            return Err(Error::Crowded { limit: self.0.per_address });
        }
        if table.connections.len() >= self.0.all && !table.shed() {
            return Err(Error::Busy);
        }
        let id = table.enter(address);
        let leave = table.connections.get(&id).map(|here| here.leave.clone()).unwrap_or_default();
        drop(table);
        Ok(Place { visitor: Visitor { places: self.clone(), id }, leave })
    }

    /// Has a stranger give up his place: something else that connections need has run out.
    pub(crate) fn shed(&self) -> bool {
        self.lock().shed()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn enter(&mut self, address: IpAddr) -> u64 {
        let (id, leave) = (self.number(), CancellationToken::new());
        let here = self.addresses.entry(address).or_default();
        here.connections += 1;
        here.strangers.insert(id, id);
        self.connections.insert(id, Connection { address, since: id, slots: 0, leave });
        metrics::connections(self.connections.len());
        id
    }

    fn leave(&mut self, id: u64) {
        let Some(gone) = self.connections.remove(&id) else { return };
        if let Some(here) = self.addresses.get_mut(&gone.address) {
            here.connections -= 1;
            here.strangers.remove(&gone.since);
            if here.connections == 0 {
                self.addresses.remove(&gone.address);
            }
        }
        metrics::connections(self.connections.len());
    }

    fn shed(&mut self) -> bool {
        let longest =
            |address: &Address| address.strangers.first_key_value().map(|(since, _)| *since);
        let busiest = self
            .addresses
            .values()
            .filter(|address| !address.strangers.is_empty())
            .max_by_key(|address| (address.strangers.len(), Reverse(longest(address))));
        let Some(id) = busiest.and_then(|address| address.strangers.values().next().copied())
        else {
            return false;
        };
        if let Some(connection) = self.connections.get(&id) {
            connection.leave.cancel();
        }
        self.leave(id);
        metrics::connection_refused("shed");
        true
    }

    /// Counts a slot that the connection got, or gave back.
    fn slots(&mut self, id: u64, change: isize) {
        let now = self.number();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(here) = self.addresses.get_mut(&connection.address) else { return };
        connection.slots = connection.slots.saturating_add_signed(change);
        here.strangers.remove(&connection.since);
        if connection.slots == 0 {
            connection.since = now;
            here.strangers.insert(now, id);
        }
    }
}

/// A connection's place, which is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    visitor: Visitor,
    leave: CancellationToken,
}

impl Place {
    /// Whose it is, for those who find out.
    pub(crate) fn visitor(&self) -> Visitor {
        self.visitor.clone()
    }

    /// Until the place is to be given up.
    pub(crate) async fn given_up(&self) {
        self.leave.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.visitor.places.lock().leave(self.visitor.id);
    }
}

/// The connection that a request came by.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    places: Places,
    id: u64,
}

impl Visitor {
    /// No stranger: keeps the place as long as what is returned is kept.
    pub(crate) fn known(&self) -> Known {
        self.places.lock().slots(self.id, 1);
        Known(self.clone())
    }
}

/// Keeps a connection's place. See [`Visitor::known`].
#[derive(Debug)]
pub(crate) struct Known(Visitor);

impl Drop for Known {
    fn drop(&mut self) {
        self.0.places.lock().slots(self.0.id, -1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn from(address: u8) -> IpAddr {
        [10, 0, 0, address].into()
    }

    fn given_up(places: &[&Place]) -> Vec<bool> {
        places.iter().map(|place| place.leave.is_cancelled()).collect()
    }

    #[test]
    fn the_address_with_most_strangers_gives_up_the_longest_there() {
        let places = Places::new(4, 4);
        let honest = places.enter(from(1)).unwrap();
        let [first, second, third] = [(); 3].map(|()| places.enter(from(2)).unwrap());
        let newcomer = places.enter(from(3)).unwrap();
        assert_eq!(given_up(&[&honest, &first, &second, &third]), [false, true, false, false]);
        let other = places.enter(from(4)).unwrap();
        assert_eq!(given_up(&[&honest, &second, &third, &newcomer]), [false, true, false, false]);
        // One from each: the longest there of all.
        let _last = places.enter(from(5)).unwrap();
        assert_eq!(given_up(&[&honest, &third, &newcomer, &other]), [true, false, false, false]);
    }

    #[test]
    fn whoever_has_a_slot_keeps_his_place_and_is_a_newcomer_again_behind_it() {
        let places = Places::new(2, 2);
        let one = places.enter(from(1)).unwrap();
        let other = places.enter(from(1)).unwrap();
        let (slot, others) = (one.visitor().known(), other.visitor().known());
        assert_eq!(places.enter(from(2)).unwrap_err().reason(), "busy");
        drop(others);
        drop(slot);
        let _newcomer = places.enter(from(2)).unwrap();
        assert_eq!(given_up(&[&one, &other]), [false, true]);
    }

    #[test]
    fn one_address_has_no_more_than_its_share() {
        let places = Places::new(10, 2);
        let _held = [places.enter(from(1)).unwrap(), places.enter(from(1)).unwrap()];
        assert_eq!(places.enter(from(1)).unwrap_err().reason(), "too_many_connections");
        assert!(places.enter(from(2)).is_ok());
    }

    proptest! {
        /// Each step: come from an address, go, take a slot, or give it back.
        #[test]
        fn whatever_happens_places_are_bounded_counted_and_free_in_the_end(
            steps in proptest::collection::vec((0u8..4, 0u8..6, any::<prop::sample::Index>()), 0..200),
        ) {
            let places = Places::new(8, 5);
            let (mut here, mut slots) = (Vec::new(), Vec::new());
            for (what, address, which) in steps {
                match what {
                    0 => here.extend(places.enter(from(address))),
                    1 if !here.is_empty() => drop(here.swap_remove(which.index(here.len()))),
                    2 if !here.is_empty() => {
                        let place: &Place = &here[which.index(here.len())];
                        slots.push((place.visitor.id, place.visitor().known()));
                    }
                    3 if !slots.is_empty() => drop(slots.swap_remove(which.index(slots.len()))),
                    _ => {}
                }
                let table = places.lock();
                prop_assert!(table.connections.len() <= 8);
                for (address, found) in &table.addresses {
                    let of = || table.connections.values().filter(|c| c.address == *address);
                    prop_assert_eq!(found.connections, of().count());
                    prop_assert_eq!(found.strangers.len(), of().filter(|c| c.slots == 0).count());
                    prop_assert!(found.connections > 0 && found.connections <= 5);
                }
                for (id, connection) in &table.connections {
                    prop_assert_eq!(connection.slots, slots.iter().filter(|(of, _)| of == id).count());
                }
                // Those who gave up their place are told so, and nobody else.
                for place in &here {
                    let has = table.connections.contains_key(&place.visitor.id);
                    prop_assert_eq!(place.leave.is_cancelled(), !has);
                }
            }
            here.clear();
            prop_assert!(places.lock().connections.is_empty() && places.lock().addresses.is_empty());
        }
    }
}
