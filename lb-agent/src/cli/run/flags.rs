//! kube-proxy's flags, so that its command line works as it is. Those that are flags of ours too are
//! declared with ours; the others are made from the table of settings.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

use crate::config::settings::{Kind, Meaning, SETTINGS, Setting};

/// What is declared as a flag, or another name of a flag, beside the others of `run`.
const DECLARED: [&str; 11] = [
    "bind-address-hard-fail",
    "cleanup",
    "config",
    "healthz-bind-address",
    "hostname-override",
    "init-only",
    "kubeconfig",
    "logging-format",
    "master",
    "metrics-bind-address",
    "write-config-to",
];

/// Those on the command line.
#[derive(Clone, Debug, Default)]
pub(super) struct KubeProxyFlags {
    /// With their values; not the declared ones.
    pub(super) given: Vec<(&'static Setting, String)>,
}

impl KubeProxyFlags {
    /// A line for each that is only a flag and has no meaning here.
    pub(super) fn meaningless(&self) -> impl Iterator<Item = String> {
        self.given
            .iter()
            .filter_map(|(setting, _)| match setting.meaning {
                Meaning::None(why) if setting.field.is_empty() => {
                    Some(format!("--{} has no meaning here: {why}", setting.flag))
                }
                Meaning::None(_) | Meaning::Honoured(_) => None,
            })
    }

    /// A line for each that a file replaces: all that have a field, but the node's name and the log.
    /// `declared` are those of the declared ones that were given.
    pub(super) fn replaced(&self, declared: &[&str]) -> Vec<String> {
        let given = self.given.iter().map(|(setting, _)| *setting);
        let declared = SETTINGS
            .iter()
            .filter(|setting| declared.contains(&setting.flag));
        let all = given.chain(declared);
        let replaced = all.filter(|setting| {
            !setting.field.is_empty()
                && setting.field != "hostnameOverride"
                && !setting.field.starts_with("logging.")
        });
        let line = |setting: &Setting| {
            let Setting { flag, field, .. } = setting;
            format!("--{flag} is ignored, as --config is given; set {field} in that file instead")
        };
        replaced.map(line).collect()
    }
}

fn made() -> impl Iterator<Item = &'static Setting> {
    let settings = SETTINGS.iter();
    settings.filter(|setting| !setting.flag.is_empty() && !DECLARED.contains(&setting.flag))
}

fn flag(setting: &'static Setting) -> Arg {
    let arg = Arg::new(setting.flag)
        .long(setting.flag)
        .hide(true)
        .value_name("VALUE")
        .action(ArgAction::Set)
        .overrides_with(setting.flag)
        .allow_hyphen_values(true);
    let arg = match setting.flag {
        "v" => arg.short('v'),
        _ => arg,
    };
    match setting.kind {
        Kind::Flag | Kind::On => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Kind::Text | Kind::Number | Kind::Span | Kind::List | Kind::Gates => arg,
    }
}

impl Args for KubeProxyFlags {
    fn augment_args(command: Command) -> Command {
        made().map(flag).fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for KubeProxyFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = made().filter_map(|setting| {
            let value = matches.get_one::<String>(setting.flag)?;
            Some((setting, value.clone()))
        });
        Ok(Self {
            given: given.collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
