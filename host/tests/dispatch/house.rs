//! What the tests of dispatch live in: a daemon's parts around one builtin runner, without a lifecycle.

use super::*;

pub const QUICK: &str = "quick";

/// A house with everything but a lifecycle.
pub struct House {
    pub clock: Arc<dyn Clock>,
    pub store: SqliteStore,
    pub veil: Arc<Veil>,
    pub runners: Arc<Runners>,
    pub wallet: Arc<Wallet>,
    pub chronos: Arc<Chronos>,
    pub dispatch: Dispatch,
    pub engine: Arc<Engine>,
    pub mailbox: Mailbox,
    _loop: tokio::task::JoinHandle<()>,
}

/// A log that can be broken and mended.
#[derive(Default)]
pub struct Log(pub AtomicBool);

impl CycleLog for Log {
    fn prepare<'a>(&'a self, _: &'a str) -> Prepared<'a> {
        let broken = self.0.load(Ordering::SeqCst);
        Box::pin(std::future::ready(if broken { Err("no space".into()) } else { Ok(()) }))
    }
}

pub struct Built {
    pub clock: Arc<dyn Clock>,
    pub store: SqliteStore,
    pub slots: usize,
    pub schedules: ScheduleSet,
    pub limits: Option<Limits>,
    pub runner: Option<Builtin>,
    pub log: Option<Arc<dyn CycleLog>>,
    pub grace: Duration,
}

impl Built {
    pub fn new(
        runner: impl Fn(&Mandate, &Context) -> Result<Report, CallError> + Send + Sync + 'static,
    ) -> Self {
        let schedules = no_schedules();
        Self {
            clock: Arc::new(SystemClock::default()),
            store: SqliteStore::in_memory().expect("a store"),
            slots: 1,
            schedules,
            limits: None,
            runner: Some(Builtin::from_fn(QUICK, runner)),
            log: None,
            grace: Duration::from_millis(50),
        }
    }

    pub async fn open(self) -> House {
        let clock = self.clock;
        let veil = Arc::new(Veil::new(self.store.clone()));
        let store: Arc<dyn Store> = Arc::clone(&veil) as _;
        let recovered = store.recover(RecoverRequest { now: clock.now() }).await.expect("it recovers");
        let nowhere = std::path::Path::new("/nonexistent/kairos");
        let runners = Runners::new(Launcher::in_process(
            SearchPath::new(nowhere, None, None),
            PluginStore::new(nowhere.join("p")),
        ));
        if let Some(runner) = self.runner {
            runners.insert(QUICK, Arc::new(runner));
        }
        let runners = Arc::new(runners);
        let utc = Arc::new(Zone::utc());
        let wallet = Arc::new(self.limits.map_or_else(Wallet::disabled, |limits| Wallet::new(limits, utc)));
        let broker = broker(&store, &clock, &wallet);
        let chronos = Arc::new(Chronos::new(Seams {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            entropy: Arc::new(SystemEntropy),
            zones: Arc::new(Zones::bundled()),
        }));
        chronos
            .load(ScheduleSet { default_runner: Some(QUICK.into()), ..self.schedules })
            .await
            .expect("schedules");
        let parts = Parts {
            clock: Arc::clone(&clock),
            store: Arc::clone(&store),
            runners: Arc::clone(&runners),
            services: Arc::new(broker),
            log: self.log,
            wallet: Arc::clone(&wallet),
        };
        let settings = Settings { slots: self.slots, stop_grace: self.grace, ..Settings::default() };
        let dispatch = Dispatch::new(parts, settings);
        let (mailbox, mut inbox) = mailbox::mailbox();
        let engine = Engine::new(engine::Parts {
            clock: Arc::clone(&clock),
            store: Arc::clone(&store),
            chronos: Arc::clone(&chronos),
            dispatch: dispatch.clone(),
            heartbeat: None,
            phase: mailbox.watch_phase(),
        });
        inbox.enter(Phase::Running);
        dispatch.start(recovered.running);
        let running = Arc::clone(&engine);
        let turning = tokio::spawn(async move {
            while let Some(Command::StatusDump(_)) = running.run_until_control(&mut inbox).await {}
        });
        House {
            clock,
            store: self.store,
            veil,
            runners,
            wallet,
            chronos,
            dispatch,
            engine,
            mailbox,
            _loop: turning,
        }
    }
}

fn broker(store: &Arc<dyn Store>, clock: &Arc<dyn Clock>, wallet: &Arc<Wallet>) -> Arc<Broker> {
    let (budget, time) = (Arc::clone(wallet), Arc::clone(clock));
    Arc::new(Broker {
        store: Arc::clone(store),
        clock: Arc::clone(clock),
        entropy: Arc::new(SystemEntropy),
        gate: Arc::new(move || budget.day_and_limits(time.now())),
        providers: Providers::default(),
        tools: Tools::default(),
        policy: Policy::default(),
    })
}

impl House {
    pub async fn add(&self, id: &str) {
        self.add_to(id, QUICK, None).await;
    }

    pub async fn add_to(&self, id: &str, runner: &str, scope: Option<&str>) {
        let mandate = self.mandate(id, runner, scope);
        let added = self.mailbox.ask(|reply| Command::Work(Work::AddMandate(Box::new(mandate), reply))).await;
        assert!(added.expect("it is taken").created);
    }

    pub fn mandate(&self, id: &str, runner: &str, scope: Option<&str>) -> NewMandate {
        NewMandate {
            id: id.into(),
            origin: Origin::Manual,
            request_id: None,
            schedule: None,
            nominal: None,
            goal: String::new(),
            runner: runner.into(),
            scope: scope.map(Into::into),
            overlap: Overlap::Queue,
            bounds: MandateBounds::default(),
            again: false,
            now: self.clock.now(),
        }
    }

    pub fn state(&self, id: &str) -> MandateState {
        self.store.mandate(id).expect("it is there").state
    }

    pub async fn becomes(&self, id: &str, state: MandateState) {
        let there = || self.store.mandate(id).is_ok_and(|row| row.state == state);
        until(&format!("{id} to be {state}"), there).await;
    }

    pub fn last_cycle(&self, id: &str) -> (Option<CycleStatus>, Option<String>) {
        let cycles = self.store.cycles(id).expect("it is there");
        let last = cycles.last().expect("one ran");
        (last.status, last.error.clone())
    }
}

pub fn ok(_: &Mandate, _: &Context) -> Result<Report, CallError> {
    Ok(Report::ok())
}

/// A runner that hears nothing, until it is let go.
pub fn until_let_go(
    let_go: &Arc<AtomicBool>,
) -> impl Fn(&Mandate, &Context) -> Result<Report, CallError> + Send + Sync + 'static {
    let go = Arc::clone(let_go);
    move |_, _| {
        while !go.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Report::ok())
    }
}

/// A runner that looks whether it should stop, for ever.
pub fn patient(_: &Mandate, host: &Context) -> Result<Report, CallError> {
    while !host.should_stop() {
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(CallError::new("stopped", "as asked"))
}
