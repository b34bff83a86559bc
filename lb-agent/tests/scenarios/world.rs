//! The node of a scenario: its files, its agent, its maps. Each step must leave what a fresh agent
//! would make of the same files, readable from the maps alone.

use std::collections::{BTreeMap, BTreeSet};

use bytemuck::Zeroable;
use lb_agent::{
    datapath::{fake::FakeMaps, store::MapStore},
    model::{Object, ObjectKey, service_port::kind_name, state::Settings},
    source::{Batch, document, folder::Folder},
    sync::{Engine, SyncReport, Wanted},
    tables::{TableSet, dump, programmed::Programmed, set::Capacities},
};
use lb_common::{
    addr::socket_addr,
    select::{Decision, Found, Origin, Remembered},
    tables::{Name, Service},
};

use crate::{
    agent::{MANY, Mortal, as_text, live, sync},
    flow::{
        answer, answers, decisions, explained, is_whole, joined, parse_flow, parse_origin, view,
    },
    script::{Files, Script, edit},
};

pub(crate) struct World<S, F> {
    make: F,
    settings: Settings,
    capacities: Capacities,
    files: Files,
    folder: Folder,
    objects: BTreeMap<ObjectKey, Object>,
    engine: Option<Engine<S>>,
    /// What a socket remembers of each destination.
    sockets: BTreeMap<(String, String), Remembered>,
    report: SyncReport,
    /// As a line has asked for them.
    problems: String,
    checks: usize,
}

type Step = Result<(), String>;

impl<S: MapStore + Clone, F: Fn(Capacities) -> S> World<S, F> {
    pub(crate) fn new(make: F) -> Self {
        Self {
            make,
            settings: Settings {
                node: "node-1".to_owned(),
                zone: None,
                external_ips: true,
            },
            capacities: Capacities::default(),
            files: Files::new(),
            folder: Folder::default(),
            objects: BTreeMap::new(),
            engine: None,
            sockets: BTreeMap::new(),
            report: SyncReport::default(),
            problems: String::new(),
            checks: 0,
        }
    }

    /// Carries out one line.
    pub(crate) fn step(&mut self, line: &str, script: &mut Script) -> Step {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        if verb != "problems" {
            self.no_new_problems()?;
        }
        match verb {
            "node" => return self.node(rest),
            "capacity" => return self.capacity(rest),
            "apply" | "delete" | "edit" => {
                let batch = self.change(verb, rest, script)?;
                return self.program(batch);
            }
            "interrupted" => {
                let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let batch = self.change(verb, rest.trim(), script)?;
                self.interrupt(batch)?;
            }
            "offline" => {
                let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let _unseen = self.change(verb, rest.trim(), script)?;
                return self.start_again();
            }
            "restart" => self.restart()?,
            "flow" => self.flow(rest)?,
            "socket" => self.socket(rest)?,
            "tables" => script.expect(rest, &self.tables_text())?,
            "plan" => script.expect(rest, &self.plan_text())?,
            "problems" => self.expect_problems(rest, script)?,
            "empty" => self.empty()?,
            _ => return Err(format!("`{verb}` is no command; see scenarios/README.md")),
        }
        self.checks += 1;
        Ok(())
    }

    /// The end of the file.
    pub(crate) fn finish(&self, script: &Script) -> Step {
        let named = |why| format!("{}: {why}", script.name);
        self.no_new_problems().map_err(named)?;
        if self.checks == 0 {
            return Err(named("it checks nothing".to_owned()));
        }
        script.all_is_read()
    }

    fn node(&mut self, rest: &str) -> Step {
        let (node, zone) = rest
            .split_once(" zone=")
            .map_or((rest, None), |(node, zone)| (node, Some(zone)));
        self.not_started("node")?;
        self.settings.node = node.to_owned();
        self.settings.zone = zone.map(str::to_owned);
        Ok(())
    }

    fn capacity(&mut self, rest: &str) -> Step {
        self.not_started("capacity")?;
        for setting in rest.split(' ') {
            let (map, cells) = setting.split_once('=').unwrap_or((setting, ""));
            let cells = cells
                .parse()
                .map_err(|_| format!("`{setting}` is not MAP=CELLS"))?;
            match map {
                "frontends" => self.capacities.frontends = cells,
                "services" => self.capacities.services = cells,
                "slots" => self.capacities.slots = cells,
                "backends" => self.capacities.backends = cells,
                _ => return Err(format!("`{map}` is no map")),
            }
        }
        Ok(())
    }

    fn not_started(&self, verb: &str) -> Step {
        match self.engine {
            None => Ok(()),
            Some(_) => Err(format!("`{verb}` comes before the first file")),
        }
    }

    /// Changes files, and says what the folder makes of it.
    fn change(&mut self, verb: &str, rest: &str, script: &mut Script) -> Result<Batch, String> {
        match verb {
            "apply" => {
                for file in rest.split(' ') {
                    let text = script.section(file)?.to_owned();
                    self.put(file, text);
                }
            }
            "delete" => rest.split(' ').try_for_each(|file| self.remove(file))?,
            "edit" => {
                let (file, how) = rest.split_once(' ').ok_or("an edit names a file")?;
                let text = edit(self.file(file)?, how.trim())?;
                self.put(file, text);
            }
            _ => return Err(format!("`{verb}` is no change; apply, delete and edit are")),
        }
        let (apply, delete) = self.folder.take_changes();
        for key in &delete {
            self.objects.remove(key);
        }
        self.objects
            .extend(apply.iter().map(|object| (object.key(), object.clone())));
        Ok(self.batch(apply, delete))
    }

    fn batch(&self, apply: Vec<Object>, delete: Vec<ObjectKey>) -> Batch {
        Batch {
            apply,
            delete,
            problems: self.folder.problems(),
            complete: self.folder.is_complete(),
        }
    }

    fn file(&self, name: &str) -> Result<&str, String> {
        let text = self.files.get(name).map(String::as_str);
        text.ok_or_else(|| format!("`{name}` is not applied"))
    }

    fn put(&mut self, name: &str, text: String) {
        self.folder.put(name, document::parse(name, &text));
        self.files.insert(name.to_owned(), text);
    }

    fn remove(&mut self, name: &str) -> Step {
        self.file(name)?;
        self.folder.remove(name);
        self.files.remove(name);
        Ok(())
    }

    /// The agent takes in a change.
    fn program(&mut self, batch: Batch) -> Step {
        let mut engine = self.take_engine()?;
        engine.fold(batch);
        self.converge(engine)
    }

    /// A new agent on the maps that the last one left.
    fn start_again(&mut self) -> Step {
        let store = self.take_engine()?.store().clone();
        let engine = Engine::start(self.wanted(), store).map_err(as_text)?;
        self.converge(engine)
    }

    /// A new agent that finds nothing to do.
    fn restart(&mut self) -> Step {
        let full = !self.report.full.is_empty();
        self.start_again()?;
        match self.report.ops {
            0 => Ok(()),
            _ if full => Ok(()),
            ops => Err(format!("the restarted agent had {ops} operations to do")),
        }
    }

    /// Kills an agent after each operation of the change in turn. Then every address answers wholly as
    /// before or wholly as after, and the next agent finishes.
    fn interrupt(&mut self, batch: Batch) -> Step {
        let engine = self.take_engine()?;
        let (wanted, store) = (engine.wanted().clone(), engine.store().clone());
        let old = store.dump().map_err(as_text)?;
        self.engine = Some(engine);
        self.program(batch.clone())?;
        let new = self.dump();
        let keys: BTreeSet<_> = old.frontends.keys().chain(new.frontends.keys()).collect();
        let view = |tables: &TableSet| view(tables, keys.iter().copied());
        let (old_view, new_view) = (view(&old), view(&new));
        for operations in 0..MANY {
            let mut victim =
                Engine::start(wanted.clone(), Mortal::new(&store, operations)).map_err(as_text)?;
            victim.fold(batch.clone());
            let finished = live(&mut victim)?;
            let left = victim.store().store.clone();
            let killed = |why| format!("killed after {operations} operations: {why}");
            let tables = left.dump().map_err(as_text)?;
            is_whole(&view(&tables), &old_view, &new_view).map_err(killed)?;
            if finished {
                return Ok(());
            }
            self.is_finished_by_another(left, &text(&new))
                .map_err(killed)?;
        }
        Err(format!("a change of more than {MANY} operations"))
    }

    fn is_finished_by_another(&self, left: S, expected: &str) -> Step {
        let mut next = Engine::start(self.wanted(), left).map_err(as_text)?;
        sync(&mut next)?;
        let made = text(&next.store().dump().map_err(as_text)?);
        if made == expected {
            return Ok(());
        }
        Err(format!("the next agent makes\n{made}of\n{expected}"))
    }

    fn take_engine(&mut self) -> Result<Engine<S>, String> {
        match self.engine.take() {
            Some(engine) => Ok(engine),
            None => Engine::start(
                Wanted::new(self.settings.clone()),
                (self.make)(self.capacities),
            )
            .map_err(as_text),
        }
    }

    /// What an agent wants that has just read the files.
    fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::new(self.settings.clone());
        wanted.fold(self.batch(self.objects.values().cloned().collect(), Vec::new()));
        wanted
    }

    /// Syncs until that succeeds, and checks what holds after every change.
    fn converge(&mut self, mut engine: Engine<S>) -> Step {
        self.report = sync(&mut engine)?;
        let tables = engine.store().dump().map_err(as_text)?;
        if Programmed::restore(&tables) != *engine.programmed() {
            return Err(
                "what is read back from the maps is not what the agent believes".to_owned(),
            );
        }
        self.engine = Some(engine);
        if self.report.full.is_empty() {
            self.as_if_fresh(&tables)?;
        }
        Ok(())
    }

    fn as_if_fresh(&self, tables: &TableSet) -> Step {
        let mut fresh =
            Engine::start(self.wanted(), FakeMaps::new(self.capacities)).map_err(as_text)?;
        sync(&mut fresh)?;
        let (actual, fresh) = (text(tables), text(&fresh.store().tables));
        if actual == fresh {
            return Ok(());
        }
        Err(format!(
            "the agent made\n{actual}and a fresh one makes\n{fresh}"
        ))
    }

    fn dump(&self) -> TableSet {
        let engine = self.engine.as_ref();
        engine.map_or_else(
            || TableSet::new(self.capacities),
            |engine| engine.store().dump().expect("these maps can be read"),
        )
    }

    /// `CLIENT -> ADDRESS[/PROTOCOL] = ANSWER | ANSWER`
    fn flow(&self, rest: &str) -> Step {
        let (client, rest) = rest
            .split_once(" -> ")
            .ok_or("a flow is `CLIENT -> ADDRESS = ANSWER`")?;
        let (to, expected) = rest.split_once(" = ").ok_or("a flow ends in ` = ANSWER`")?;
        let flow = parse_flow(to.trim(), parse_origin(client)?)?;
        let expected: BTreeSet<_> = expected
            .split('|')
            .map(|answer| answer.trim().to_owned())
            .collect();
        let tables = self.dump();
        let (actual, explained) = (answers(&tables, &flow), explained(&tables, &flow));
        if actual != expected {
            return Err(format!("the flow gets {}", joined(&actual)));
        }
        if explained != actual {
            return Err(format!("`why` says {}", joined(&explained)));
        }
        Ok(())
    }

    /// `NAME -> ADDRESS = ANSWER`, one of those that a new socket may get; `NAME -> ADDRESS keeps ANSWER`,
    /// what it got before.
    fn socket(&mut self, rest: &str) -> Step {
        let (name, rest) = rest
            .split_once(" -> ")
            .ok_or("a socket line is `NAME -> ADDRESS = ANSWER`")?;
        let (to, keeps, expected) = match (rest.split_once(" keeps "), rest.split_once(" = ")) {
            (Some((to, expected)), _) => (to, true, expected),
            (None, Some((to, expected))) => (to, false, expected),
            (None, None) => {
                return Err("a socket line ends in ` = ANSWER` or ` keeps ANSWER`".to_owned());
            }
        };
        let key = (name.to_owned(), to.trim().to_owned());
        let flow = parse_flow(&key.1, Origin::Node)?;
        let decisions = decisions(&self.dump(), &flow, self.sockets.get(&key).copied());
        let is_expected = |decision: &&Decision| {
            answer(decision) == expected.trim()
                && matches!(decision, Decision::Forward(to) if to.found == Found::BySocket) == keeps
        };
        let Some(decision) = decisions.iter().find(is_expected) else {
            let kept = decisions.iter().any(
                |decision| matches!(decision, Decision::Forward(to) if to.found == Found::BySocket),
            );
            let actual: BTreeSet<_> = decisions.iter().map(answer).collect();
            return Err(format!(
                "the socket {} {}",
                if kept { "keeps" } else { "gets" },
                joined(&actual)
            ));
        };
        if let Decision::Forward(to) = decision {
            let generation = to.backend.membership.generation;
            self.sockets.insert(
                key,
                Remembered {
                    backend: to.index,
                    generation,
                },
            );
        }
        Ok(())
    }

    fn tables_text(&self) -> String {
        text(&self.dump())
    }

    /// What a client from outside gets at each address, of the kinds that have no program yet too.
    fn plan_text(&self) -> String {
        let wanted = self.wanted();
        let ports = wanted
            .model()
            .services()
            .flat_map(|name| wanted.model().service_ports(name));
        ports
            .map(|port| {
                let frontends = port.frontends.iter().map(|at| {
                    let addr = at.addr.map_or_else(
                        || format!("*:{}", at.port),
                        |addr| socket_addr(addr, at.port).to_string(),
                    );
                    let verdict = port.verdict(at.kind, Origin::Outside);
                    format!("  {} {addr} {verdict}\n", kind_name(at.kind))
                });
                format!(
                    "{} {} {}\n{}",
                    port.id,
                    port.id.proto,
                    port.id.family,
                    frontends.collect::<String>()
                )
            })
            .collect()
    }

    fn problems_now(&self) -> String {
        let engine = self.engine.iter();
        let wanted = engine.flat_map(|engine| engine.wanted().problems());
        let full = self.report.full.iter().map(ToString::to_string);
        wanted.chain(full).map(|problem| problem + "\n").collect()
    }

    fn no_new_problems(&self) -> Step {
        let now = self.problems_now();
        let new = now
            .lines()
            .find(|line| !self.problems.lines().any(|known| known == *line));
        new.map_or(Ok(()), |line| {
            Err(format!("a problem that no line asks for: {line}"))
        })
    }

    fn expect_problems(&mut self, section: &str, script: &mut Script) -> Step {
        self.problems = self.problems_now();
        match (section, self.problems.as_str()) {
            ("none", "") => Ok(()),
            ("none", problems) => Err(format!("there are problems:\n{problems}")),
            (section, problems) => script.expect(section, problems),
        }
    }

    fn empty(&self) -> Step {
        let tables = self.dump();
        let used = [
            ("FRONTENDS", tables.frontends.len()),
            (
                "NAMES",
                tables
                    .names
                    .iter()
                    .filter(|cell| **cell != Name::zeroed())
                    .count(),
            ),
            (
                "SERVICES",
                tables
                    .services
                    .iter()
                    .filter(|cell| **cell != Service::zeroed())
                    .count(),
            ),
            (
                "BACKENDS",
                tables
                    .backends
                    .iter()
                    .filter(|cell| cell.membership.lists != 0)
                    .count(),
            ),
        ];
        match used.iter().find(|(_, cells)| *cells > 0) {
            Some((map, cells)) => Err(format!("{map} still has {cells} cells in use")),
            None => Ok(()),
        }
    }
}

fn text(tables: &TableSet) -> String {
    dump::services(tables)
        .iter()
        .map(ToString::to_string)
        .collect()
}
