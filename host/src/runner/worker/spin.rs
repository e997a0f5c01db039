//! A short wait without sleep, for whoever has just said something and expects the answer: waking
//! a sleeping thread costs more than most answers do.
//!
//! It must never cost more than it can save. Whoever waits spins once for each thing it said, for
//! [`WINDOW`] at most, and then sleeps; after [`MISSES`] answers in a row that took longer it
//! sleeps at once, until one comes quickly again. Nobody spins who has nothing to expect: an idle
//! worker, an idle daemon and both ends of a slow call sleep. Nor does anybody while the machine has
//! more to do than processors: what one finds out, all others know, also those that start then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::clock::{Clock, SystemClock};

/// Longest spin. Waking both ends of an idle machine takes about half of it, so that the first
/// exchange of a burst already finds the other end awake for the second.
const WINDOW: Duration = Duration::from_micros(100);

/// Spins in vain after which none is tried any more, until an answer comes within the window.
const MISSES: u32 = 3;

/// Rounds between two offers of the processor to others; the first round makes one, before it
/// looks. An answer whose maker waits for this very processor comes by that, and by nothing else.
const ROUNDS: u32 = 16;

/// Hints to the processor between two looks, so that looking does not slow the other end down.
const PAUSES: u32 = 8;

/// Time without spins after somebody else took the processor from one. Giving way on a busy machine
/// can cost a slice of milliseconds: that is paid a few times a second at most.
const CALM: Duration = Duration::from_millis(250);

/// Two losses of the processor within this time are a crowd; one alone happens on any machine.
const STRIKES: Duration = Duration::from_millis(20);

/// What all who spin in a process have learnt of the machine, as nanoseconds of the clock.
#[derive(Debug, Default)]
pub struct Crowd {
    /// There is no use in spinning until then.
    until: AtomicU64,
    /// When somebody lost the processor last.
    lost: AtomicU64,
}

impl Crowd {
    /// How long it still counts as crowded; zero when it does not.
    pub fn left(&self, now: Duration) -> Duration {
        Duration::from_nanos(self.until.load(Ordering::Relaxed)).saturating_sub(now)
    }

    /// Counts as crowded for so long.
    pub fn calm(&self, now: Duration, time: Duration) {
        self.until.store(nanos(now + time.min(CALM)), Ordering::Relaxed);
    }

    /// Somebody else took the processor from a spin.
    fn lost(&self, now: Duration) {
        let before = self.lost.swap(nanos(now), Ordering::Relaxed);
        if before > 0 && now.saturating_sub(Duration::from_nanos(before)) < STRIKES {
            self.calm(now, CALM);
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What a spin needs of the machine.
pub trait Cpu {
    /// Time since some fixed start.
    fn now(&self) -> Duration;
    /// Lets another thread that waits for this processor run first.
    fn give_way(&self);
    /// Waits for some nanoseconds.
    fn pause(&self);
}

impl Cpu for SystemClock {
    fn now(&self) -> Duration {
        self.monotonic()
    }

    fn give_way(&self) {
        rustix::thread::sched_yield();
    }

    fn pause(&self) {
        (0..PAUSES).for_each(|_| std::hint::spin_loop());
    }
}

/// Whether to spin, as one reader of one socket has learnt.
#[derive(Debug, Default)]
pub struct Spin {
    /// Something was said since the last spin in vain.
    expects: bool,
    misses: u32,
    crowd: Arc<Crowd>,
    /// Both ends have one processor: while one spins, the other cannot answer.
    alone: bool,
}

impl Spin {
    /// For a reader on the processors that this thread may use.
    pub fn here(crowd: Arc<Crowd>) -> Self {
        let processors = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
        Self::on(processors, crowd)
    }

    fn on(processors: u32, crowd: Arc<Crowd>) -> Self {
        Self { alone: processors < 2, crowd, ..Self::default() }
    }

    /// What it learns of the machine.
    pub fn crowd(&self) -> &Crowd {
        &self.crowd
    }

    /// To be called when something was said to which there will be an answer.
    pub fn expect(&mut self) {
        self.expects = true;
    }

    /// Looks as long as it pays; none when it is time to sleep. Whoever expects nothing looks once.
    /// One who expects an answer that is known to take long does not look before it has slept.
    pub fn look<T>(&mut self, cpu: &impl Cpu, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        if !self.expects {
            return look();
        }
        let begun = cpu.now();
        if self.alone || self.misses >= MISSES || !self.crowd.left(begun).is_zero() {
            self.expects = false;
            return None;
        }
        for round in 0_u32.. {
            if round % ROUNDS == 0 {
                cpu.give_way();
            } else {
                cpu.pause();
            }
            let found = look();
            let taken = cpu.now().saturating_sub(begun);
            if taken > WINDOW {
                return self.late(cpu, taken, found);
            }
            if found.is_some() {
                self.misses = 0;
                return found;
            }
        }
        None
    }

    fn late<T>(&mut self, cpu: &impl Cpu, taken: Duration, found: Option<T>) -> Option<T> {
        if taken > 2 * WINDOW {
            self.crowd.lost(cpu.now());
        }
        if found.is_none() {
            self.misses += 1;
            self.expects = false;
        }
        found
    }

    /// To be called after a sleep that an answer has ended: a short one would have been a spin.
    pub fn slept(&mut self, time: Duration) {
        if time <= WINDOW {
            self.misses = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Each look takes a microsecond; giving way takes what the test says.
    #[derive(Default)]
    struct Fake {
        now: Cell<Duration>,
        stolen: Cell<Duration>,
        gave_way: Cell<u32>,
    }

    impl Cpu for Fake {
        fn now(&self) -> Duration {
            self.now.get()
        }

        fn give_way(&self) {
            self.gave_way.set(self.gave_way.get() + 1);
            self.now.set(self.now.get() + self.stolen.get());
        }

        fn pause(&self) {}
    }

    /// Looks for an answer that comes after `wait`, sleeping when it should: how many looks.
    fn wait_for(spin: &mut Spin, cpu: &Fake, wait: Duration) -> u32 {
        let (due, mut looks) = (cpu.now() + wait, 0);
        let mut look = || {
            looks += 1;
            cpu.now.set(cpu.now() + Duration::from_micros(1));
            (cpu.now() >= due).then_some(())
        };
        if spin.look(cpu, &mut look).is_none() {
            let asleep = cpu.now();
            cpu.now.set(due.max(asleep));
            spin.slept(cpu.now() - asleep);
        }
        looks
    }

    /// A whole exchange: something is said, and the answer comes after `wait`.
    fn exchange(spin: &mut Spin, cpu: &Fake, wait: Duration) -> u32 {
        spin.expect();
        wait_for(spin, cpu, wait)
    }

    const QUICK: Duration = Duration::from_micros(20);
    const SLOW: Duration = Duration::from_secs(1);

    #[test]
    fn nobody_spins_who_has_one_processor_only() {
        let (mut spin, cpu) = (Spin::on(1, Arc::default()), Fake::default());
        spin.expect();
        assert_eq!(spin.look(&cpu, || -> Option<()> { panic!("it looked") }), None);
        assert_eq!(cpu.gave_way.get(), 0);
    }

    #[test]
    fn quick_answers_are_found_without_sleep() {
        let (mut spin, cpu) = (Spin::default(), Fake::default());
        for _ in 0..1000 {
            assert_eq!(exchange(&mut spin, &cpu, QUICK), 20);
        }
        assert_eq!(spin.misses, 0);
    }

    #[test]
    fn slow_answers_cost_three_spins_however_many_they_are() {
        let (mut spin, cpu) = (Spin::default(), Fake::default());
        let looks: u32 = (0..1000).map(|_| exchange(&mut spin, &cpu, SLOW)).sum();
        assert!((1..=3 * 101).contains(&looks), "{looks}");
    }

    #[test]
    fn who_said_nothing_looks_once_and_sleeps() {
        let (mut spin, cpu) = (Spin::default(), Fake::default());
        assert_eq!(wait_for(&mut spin, &cpu, SLOW), 1);
        exchange(&mut spin, &cpu, SLOW);
        // The answer to what was said may still come, but nothing was said since.
        assert_eq!(wait_for(&mut spin, &cpu, SLOW), 1);
        assert_eq!(wait_for(&mut spin, &cpu, QUICK), 1);
    }

    #[test]
    fn one_quick_answer_after_slow_ones_makes_spinning_worth_it_again() {
        let (mut spin, cpu) = (Spin::default(), Fake::default());
        for _ in 0..10 {
            exchange(&mut spin, &cpu, SLOW);
        }
        assert_eq!(exchange(&mut spin, &cpu, QUICK), 0, "asleep, but not for long");
        assert!(exchange(&mut spin, &cpu, QUICK) > 1);
    }

    #[test]
    fn the_processor_is_offered_before_the_first_round_and_seldom_after() {
        let (mut spin, cpu) = (Spin::default(), Fake::default());
        exchange(&mut spin, &cpu, Duration::from_micros(2));
        assert_eq!(cpu.gave_way.get(), 1);
        exchange(&mut spin, &cpu, SLOW);
        assert!((5..10).contains(&cpu.gave_way.get()), "{}", cpu.gave_way.get());
    }

    #[test]
    fn a_crowded_processor_is_left_alone_by_all_for_long() {
        let crowd = Arc::<Crowd>::default();
        let cpu = Fake::default();
        let [mut spin, mut other] = [(); 2].map(|()| Spin::on(2, Arc::clone(&crowd)));
        cpu.stolen.set(Duration::from_millis(3));
        exchange(&mut spin, &cpu, QUICK);
        // Once is no crowd.
        exchange(&mut other, &cpu, QUICK);
        assert_eq!(cpu.gave_way.get(), 2);
        let until = cpu.now() + CALM - QUICK;
        while cpu.now() < until {
            assert_eq!(exchange(&mut spin, &cpu, QUICK), 0);
            assert_eq!(exchange(&mut other, &cpu, QUICK), 0);
        }
        cpu.now.set(cpu.now() + QUICK);
        exchange(&mut other, &cpu, QUICK);
        assert_eq!(cpu.gave_way.get(), 3);
    }
}
