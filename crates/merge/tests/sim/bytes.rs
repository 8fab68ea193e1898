//! How bytes move: nobody has any, but it is known who would give which, and whether they would fit.

use std::time::Duration;

use merge::{Data, Digest, Event};

use super::{Fault, World, hotkey};

impl World {
    /// Whether a member gives bytes that fit to another one.
    fn serves(&self, from: usize, to: usize, data: &Data) -> Option<bool> {
        let node = &self.nodes[from];
        match node.member.fault {
            Fault::Stalls => return None,
            Fault::ServesHalf if to >= self.nodes.len() / 2 => return None,
            Fault::Garbage => return Some(false),
            _ => {}
        }
        let machine = node.machine.as_ref()?;
        let own = |digest: &Digest| {
            let asker = self.nodes[to].machine.as_ref();
            let said = asker.and_then(|asker| asker.statement(digest));
            said.is_some_and(|one| one.said().author == hotkey(from))
        };
        // Who says two things about its slice has both.
        let both = matches!(node.member.fault, Fault::Equivocates(_))
            && matches!(data, Data::Reduced(digest) if own(digest));
        Some(both || machine.serves(&hotkey(to), data))
    }

    pub(super) fn fetch(&mut self, me: usize, data: Data, from: usize, until: Duration) {
        let left = until.saturating_sub(self.now);
        let failed = Event::FetchFailed { data: data.clone(), from: hotkey(from) };
        if !self.reaches(from, me) || !self.nodes[from].member.callable {
            return self.tell(me, self.schedule.pace.min(left), failed);
        }
        let took = self.latency(from) * 4;
        match self.serves(from, me, &data) {
            Some(true) if took <= left => self.tell(me, took, Event::Held(data)),
            Some(_) => self.tell(me, took.min(left), failed),
            // Nobody tells: the machine has its own deadlines.
            None => {}
        }
    }

    pub(super) fn push(&mut self, me: usize, data: Data, to: usize, until: Duration) {
        let left = until.saturating_sub(self.now);
        let wants = self.reaches(me, to)
            && self.nodes[to].member.callable
            && self.nodes[to].machine.as_ref().unwrap().wants(&hotkey(me), &data);
        let has = self.serves(me, to, &data) == Some(true);
        let took = self.latency(me) * 4;
        if wants && has && took <= left {
            self.tell(to, took, Event::Held(data.clone()));
            self.tell(me, took, Event::Pushed { data, to: hotkey(to) });
        } else {
            self.tell(me, took.min(left), Event::PushFailed { data, to: hotkey(to) });
        }
    }
}
