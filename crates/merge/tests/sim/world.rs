//! The world: members, the wires between them, and what happens when.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use domain::{ExpertGroup, ModelHash, RoundId};
use merge::{
    Command, Digest, Event, Exchange, Gradient, Machine, Outcome, PROTOCOL, Roster, Saved,
    Schedule, Start, Statement, Terms, Verdict, Verified,
};

use super::{Fault, Keys, Rng, faults::index_of, hotkey};

/// Who takes part.
#[derive(Debug, Clone)]
pub struct Member {
    pub fault: Fault,
    pub callable: bool,
    pub gives: bool,
    pub stake: u64,
    pub allow_solo: bool,
}

impl Member {
    pub fn with(fault: Fault) -> Self {
        Self { fault, callable: true, gives: true, stake: 1, allow_solo: false }
    }
}

/// What the wires do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Net {
    /// Percent of calls and answers that are lost, never two of a pair in a row.
    pub loss: u64,
    /// Percent of calls that come twice.
    pub twice: u64,
    /// All messages take the same time, and nothing has to be tried again.
    pub even: bool,
    /// The lower half does not reach the upper half from here to there.
    pub split: Option<(Duration, Duration)>,
}

#[derive(Debug)]
enum Act {
    Tell(usize, u64, Box<Event>),
    Call { from: usize, to: usize, exchange: Exchange<Verified>, again: bool },
    Kill(usize),
    Begin(usize),
    Reveal(usize, usize),
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) member: Member,
    pub(super) machine: Option<Machine>,
    life: u64,
    saved: Saved,
    waking: Option<Duration>,
    ended: Option<(Duration, Outcome)>,
    last_lost: BTreeMap<usize, bool>,
    terms: Terms,
    /// What it keeps from the others for now.
    kept: Vec<Verified>,
}

/// All of it.
pub struct World {
    pub keys: Keys,
    pub terms: Terms,
    pub schedule: Schedule,
    net: Net,
    rng: Rng,
    pub(super) now: Duration,
    count: u64,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    acts: BTreeMap<u64, Act>,
    pub(super) nodes: Vec<Node>,
    steps: u64,
}

pub const CHUNKS_OF_A_SLICE: u32 = 16;

impl World {
    pub fn new(seed: u64, net: Net, members: Vec<Member>, faults: u8, min_group: u32) -> Self {
        let roster = Self::roster(&members);
        let callable = members.iter().filter(|member| member.callable).count();
        let terms = Terms {
            protocol: PROTOCOL,
            group: ExpertGroup(1),
            base: ModelHash([7; 24]),
            layout: Digest::of(b"layout"),
            codec: "plain".to_owned(),
            reduction: "mean".to_owned(),
            roster: roster.digest(),
            chunks: u32::try_from(callable).unwrap() * CHUNKS_OF_A_SLICE,
            min_group,
            target_group: 8,
            max_faults: faults,
            deadline_ms: 1_000_000,
        };
        let schedule = Schedule::new(terms.deadline(), faults);
        let mut world = Self {
            keys: Keys::default(),
            schedule,
            terms,
            net,
            rng: Rng(seed),
            now: Duration::ZERO,
            count: 0,
            queue: BinaryHeap::new(),
            acts: BTreeMap::new(),
            nodes: Vec::new(),
            steps: 0,
        };
        for (index, member) in members.into_iter().enumerate() {
            let percent = if net.even { 0 } else { world.rng.below(10) };
            let skew = schedule.step * u32::try_from(percent).unwrap() / 100;
            if let Some((at, to)) = member.fault.reveals() {
                world.at(at, Act::Reveal(index, to));
            }
            match member.fault {
                Fault::Silent => {}
                Fault::Dies(at) => {
                    world.at(skew, Act::Begin(index));
                    world.at(at, Act::Kill(index));
                }
                Fault::Restarts(at, after) => {
                    world.at(skew, Act::Begin(index));
                    world.at(at.max(skew), Act::Kill(index));
                    world.at(at.max(skew) + after, Act::Begin(index));
                }
                Fault::Cancels(at) => {
                    world.at(skew, Act::Begin(index));
                    world.at(at.max(skew), Act::Tell(index, 1, Box::new(Event::Cancel)));
                }
                _ => world.at(skew, Act::Begin(index)),
            }
            world.nodes.push(Node {
                member,
                machine: None,
                life: 0,
                saved: Saved::default(),
                waking: None,
                ended: None,
                last_lost: BTreeMap::new(),
                terms: world.terms.clone(),
                kept: Vec::new(),
            });
        }
        world
    }

    /// What a member can prove when all is over.
    pub fn proofs(&self, index: usize) -> Vec<merge::Proof> {
        self.nodes[index].machine.as_ref().map(Machine::proofs).unwrap_or_default()
    }

    /// Gives one member other terms.
    pub fn vary(&mut self, index: usize, change: impl Fn(&mut Terms)) {
        change(&mut self.nodes[index].terms);
    }

    fn roster(members: &[Member]) -> Roster {
        Roster(members.iter().enumerate().map(|(i, m)| (hotkey(i), m.stake)).collect())
    }

    fn start(&self, index: usize) -> Start {
        let members: Vec<Member> = self.nodes.iter().map(|node| node.member.clone()).collect();
        let member = &members[index];
        let chunks = Digest::of(hotkey(index).as_str().as_bytes());
        Start {
            round: RoundId(336),
            me: hotkey(index),
            terms: self.nodes[index].terms.clone(),
            roster: Self::roster(&members),
            gradient: member.gives.then_some(Gradient { bytes: 1 << 20, chunks }),
            callable: member.callable,
            allow_solo: member.allow_solo,
            secret: Digest::of(&[u8::try_from(index).unwrap(), 9]).0,
            audits: 12,
            incarnation: self.nodes[index].life,
        }
    }

    fn at(&mut self, at: Duration, act: Act) {
        self.count += 1;
        self.acts.insert(self.count, act);
        self.queue.push(Reverse((at.max(self.now), self.count)));
    }

    pub(super) fn tell(&mut self, to: usize, after: Duration, event: Event) {
        let life = self.nodes[to].life;
        self.at(self.now + after, Act::Tell(to, life, Box::new(event)));
    }

    /// Runs until nothing happens any more; how each member ended, and when.
    pub fn run(&mut self) -> Vec<Option<(Duration, Outcome)>> {
        while let Some(Reverse((at, id))) = self.queue.pop() {
            self.steps += 1;
            assert!(self.steps < 1_000_000, "the members never come to rest");
            if at > self.schedule.end * 2 {
                break;
            }
            self.now = at;
            match self.acts.remove(&id).unwrap() {
                Act::Tell(to, life, event) => self.handle(to, life, *event),
                Act::Call { from, to, exchange, again } => self.arrive(from, to, exchange, again),
                Act::Reveal(from, to) => self.reveal(from, to),
                Act::Kill(index) => self.nodes[index].machine = None,
                Act::Begin(index) => {
                    self.nodes[index].life += 1;
                    let start = self.start(index);
                    let saved = self.nodes[index].saved.clone();
                    let node = &mut self.nodes[index];
                    if node.ended.is_none() {
                        node.waking = None;
                        node.machine = Some(Machine::new(start, saved));
                        let life = node.life;
                        self.handle(index, life, Event::Tick);
                    }
                }
            }
        }
        self.nodes.iter().map(|node| node.ended.clone()).collect()
    }

    fn handle(&mut self, to: usize, life: u64, event: Event) {
        let (now, node) = (self.now, &mut self.nodes[to]);
        let Some(machine) = node.machine.as_mut().filter(|_| node.life == life) else { return };
        if matches!(event, Event::Tick) {
            node.waking = None;
        }
        let commands = machine.handle(now, event);
        for command in commands {
            self.execute(to, command);
        }
        self.wake(to);
    }

    fn wake(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(at) = node.machine.as_ref().and_then(Machine::next_wake) else { return };
        if node.waking.is_none_or(|waking| at < waking) {
            node.waking = Some(at);
            let life = node.life;
            self.at(at, Act::Tell(index, life, Box::new(Event::Tick)));
        }
    }

    pub(super) fn latency(&mut self, from: usize) -> Duration {
        let most = self.schedule.pace / 4;
        let part = if self.net.even { 100 } else { 1 + self.rng.below(100) };
        let lat = most * u32::try_from(part).unwrap() / 100;
        match self.nodes[from].member.fault {
            Fault::Slow(more) => lat + more,
            _ => lat,
        }
    }

    pub(super) fn reaches(&self, from: usize, to: usize) -> bool {
        let cut = |index: usize| match self.nodes[index].member.fault {
            Fault::CutOff(since, until) => (since..until).contains(&self.now),
            _ => false,
        };
        let half = self.nodes.len() / 2;
        let split = self.net.split.is_some_and(|(since, until)| {
            (since..until).contains(&self.now) && (from < half) != (to < half)
        });
        self.nodes[to].machine.is_some() && !cut(from) && !cut(to) && !split
    }

    fn loses(&mut self, from: usize, to: usize) -> bool {
        let lost = self.rng.chance(self.net.loss)
            && !self.nodes[from].last_lost.get(&to).copied().unwrap_or(false);
        self.nodes[from].last_lost.insert(to, lost);
        lost
    }

    fn execute(&mut self, me: usize, command: Command) {
        let members = self.nodes.len();
        let index = |of: &domain::Hotkey| index_of(members, of);
        match command {
            Command::Save(saved) => self.nodes[me].saved = saved,
            Command::Sign(said) => {
                let event = if !self.net.even && self.rng.chance(3) {
                    Event::NotSigned(said)
                } else {
                    Event::Signed(self.keys.sign(said))
                };
                self.tell(me, Duration::from_millis(5), event);
            }
            Command::Call { to, exchange } => {
                let failed = Event::CallFailed { to: to.clone() };
                let to = index(&to);
                let fault = self.nodes[me].member.fault.clone();
                let kept = &mut self.nodes[me].kept;
                let (rng, now) = (&mut self.rng, self.now);
                let sent = fault.tamper(&self.keys, rng, now, (me, to), kept, exchange);
                let lost = self.loses(me, to);
                let Some(exchange) = sent.filter(|_| self.nodes[to].member.callable && !lost)
                else {
                    return self.tell(me, self.schedule.pace, failed);
                };
                let latency = self.latency(me);
                if fault == Fault::Replays || self.rng.chance(self.net.twice) {
                    let later = latency * u32::try_from(2 + self.rng.below(400)).unwrap();
                    let exchange = exchange.clone();
                    self.at(self.now + later, Act::Call { from: me, to, exchange, again: true });
                }
                self.at(self.now + latency, Act::Call { from: me, to, exchange, again: false });
            }
            Command::Reply { .. } => unreachable!("taken where the call arrives"),
            Command::Fetch { data, from, until } => self.fetch(me, data, index(&from), until),
            Command::Push { data, to, until } => self.push(me, data, index(&to), until),
            Command::Reduce { slice, attempt, contributors } => {
                let chunks = match self.nodes[me].member.fault {
                    Fault::FailsReducing => {
                        let failed = Event::ReduceFailed { slice, attempt };
                        return self.tell(me, Duration::ZERO, failed);
                    }
                    Fault::WrongReduction => {
                        let chunk = u32::from(slice) * CHUNKS_OF_A_SLICE + 5;
                        self.keys.reduce_wrongly(slice, &contributors, chunk)
                    }
                    _ => Keys::reduce(slice, &contributors),
                };
                let after = match self.nodes[me].member.fault {
                    Fault::ReducesSlowly(after) => after,
                    _ => Duration::from_secs(1),
                };
                self.tell(me, after, Event::Reduced { slice, attempt, chunks });
            }
            Command::Audit { statement, chunk, sources, .. } => {
                let machine = self.nodes[me].machine.as_ref().unwrap();
                let said = machine.statement(&statement).unwrap().said().clone();
                let Statement::Slice(slice) = said.what else {
                    unreachable!("audits are of slices")
                };
                let has = |who: usize| {
                    self.reaches(me, who)
                        && !matches!(self.nodes[who].member.fault, Fault::Stalls | Fault::Garbage)
                };
                let owner = index(&said.author);
                let there = sources.iter().any(|from| index(from) == owner) && has(owner);
                let pieces = || slice.contributors.iter().all(|h| index(h) == me || has(index(h)));
                let verdict = match there || pieces() {
                    false => Verdict::Unknown,
                    true if self.keys.is_wrong(&slice, chunk) => Verdict::Wrong,
                    true => Verdict::Right,
                };
                let after = self.latency(me) * 2;
                self.tell(me, after, Event::Audited { statement, chunk, verdict });
            }
            Command::End(outcome) => {
                assert!(self.nodes[me].ended.is_none(), "member {me} ended twice");
                self.nodes[me].ended = Some((self.now, outcome));
            }
        }
    }

    /// Shows one member what was kept back.
    fn reveal(&mut self, from: usize, to: usize) {
        let node = &self.nodes[from];
        let Some(machine) = node.machine.as_ref().filter(|_| from != to) else { return };
        let group = machine.group().map(merge::Group::digest);
        let statements = node.kept.clone();
        let exchange = Exchange { incarnation: node.life, group, had: None, statements };
        self.at(self.now, Act::Call { from, to, exchange, again: true });
    }

    fn arrive(&mut self, from: usize, to: usize, exchange: Exchange<Verified>, again: bool) {
        let (now, pace, caller) = (self.now, self.schedule.pace, hotkey(from));
        if !self.reaches(from, to) {
            if !again {
                self.tell(from, pace, Event::CallFailed { to: hotkey(to) });
            }
            return;
        }
        let machine = self.nodes[to].machine.as_mut().unwrap();
        let commands = machine.handle(now, Event::Called { from: caller, exchange });
        let mut answer = None;
        for command in commands {
            match command {
                Command::Reply { exchange, .. } => answer = Some(exchange),
                other => self.execute(to, other),
            }
        }
        self.wake(to);
        let answer = answer.expect("a call is answered");
        let fault = self.nodes[to].member.fault.clone();
        let kept = &mut self.nodes[to].kept;
        let answer = fault.tamper(&self.keys, &mut self.rng, now, (to, from), kept, answer);
        let lost = self.loses(to, from);
        if again {
            return;
        }
        match answer.filter(|_| !lost) {
            Some(exchange) => {
                let latency = self.latency(to);
                self.tell(from, latency, Event::Answered { from: hotkey(to), exchange });
            }
            None => self.tell(from, pace, Event::CallFailed { to: hotkey(to) }),
        }
    }
}
