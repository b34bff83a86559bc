//! What an operator set of kube-proxy's settings: by a `KubeProxyConfiguration`, kube-proxy's file, or by
//! its flags. Read one by one, so that each is followed, or said to have no meaning, or refused where it
//! stands.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::{
    Detect, Local, METRICS_PORT, SYNC_PERIOD, duration,
    settings::{Kind, Meaning, SETTINGS, Setting, of_field},
};
use crate::{api::value, model::service::Cidr};

pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub const KIND: &str = "KubeProxyConfiguration";

/// The gate without which external IPs are not served.
pub const EXTERNAL_IPS: &str = "AllowServiceExternalIPs";

/// What `--write-config-to` writes: the fields that have a meaning here, as they are without a file.
pub const DEFAULTS: &str = "\
# kube-proxy's configuration file, with the fields that nearhop follows and their defaults.
# Its other fields are accepted; the log says of each that is set that it has no meaning here.
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
# The ServiceAccount of the pod, if there is no kubeconfig.
clientConnection:
  kubeconfig: \"\"
# The host's name.
hostnameOverride: \"\"
bindAddress: 0.0.0.0
bindAddressHardFail: false
healthzBindAddress: 0.0.0.0:10256
metricsBindAddress: 127.0.0.1:10249
featureGates:
  AllowServiceExternalIPs: true
clusterCIDR: \"\"
detectLocalMode: ClusterCIDR
detectLocal:
  bridgeInterface: \"\"
  interfaceNamePrefix: \"\"
iptables:
  masqueradeAll: false
  syncPeriod: 30s
logging:
  format: text
  verbosity: 0
";

/// What is set to something other than nothing: null, false, 0, an empty text or list all leave the
/// default, as in kube-proxy, whose own files hold every field.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// `None`: flags.
    file: Option<PathBuf>,
    /// By field; with the line in the file.
    values: BTreeMap<&'static str, (u64, Value)>,
}

/// The file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FileError {
    path: PathBuf,
    line: Option<u64>,
    what: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.line {
            Some(line) => write!(f, "{path}:{line}: {}", self.what),
            None => write!(f, "{path}: {}", self.what),
        }
    }
}

impl Given {
    /// Of flags, each with its value as it was written.
    ///
    /// # Errors
    ///
    /// A value is of another type.
    pub fn of_flags<'a>(
        flags: impl IntoIterator<Item = (&'static Setting, &'a str)>,
    ) -> Result<Self, String> {
        let mut given = Self::default();
        for (setting, text) in flags {
            let value = of_flag(setting.kind, text).ok_or_else(|| {
                format!(
                    "--{} {text}: it must be {}",
                    setting.flag,
                    looks(setting.kind)
                )
            })?;
            if !is_nothing(setting.kind, &value) {
                given.values.insert(setting.field, (0, value));
            }
        }
        Ok(given)
    }

    /// Of the text of a file.
    ///
    /// # Errors
    ///
    /// A field in it is none of kube-proxy's, or has another type.
    pub fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        let failed = |line, what| FileError {
            path: path.to_owned(),
            line,
            what,
        };
        let options = serde_saphyr::options! { with_snippet: false };
        let tree: Spanned<Tree> =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| {
                let line = error.location().map(|location| location.line());
                let what = error.without_snippet().to_string();
                failed(
                    line,
                    format!("{what}; the file must be well-formed YAML or JSON"),
                )
            })?;
        let mut given = Self {
            file: Some(path.to_owned()),
            values: BTreeMap::new(),
        };
        let line = tree.referenced.line();
        let Tree::Map(fields) = tree.value else {
            let what = format!("it holds no fields; it must be a {KIND}");
            return Err(failed(Some(line), what));
        };
        check_kind(&fields, line)
            .and_then(|()| given.section("", fields))
            .map_err(|(line, what)| failed(Some(line), what))?;
        Ok(given)
    }

    fn section(&mut self, path: &str, fields: Fields) -> Result<(), Wrong> {
        for (key, tree) in fields {
            let line = key.referenced.line();
            let field = match path {
                "" if ["apiVersion", "kind"].contains(&key.value.as_str()) => continue,
                "" => key.value,
                path => format!("{path}.{}", key.value),
            };
            match (of_field(&field), tree) {
                (Some(setting), tree) => self.set(setting, line, tree)?,
                (None, Tree::Map(fields)) if is_section(&field) => self.section(&field, fields)?,
                (None, Tree::Leaf(Value::Null)) if is_section(&field) => {}
                (None, _) if is_section(&field) => {
                    return Err((line, format!("{field} must have fields of its own")));
                }
                (None, _) => return Err((line, unknown(&field))),
            }
        }
        Ok(())
    }

    fn set(&mut self, setting: &'static Setting, line: u64, tree: Tree) -> Result<(), Wrong> {
        let value = tree.into_value();
        if !value.is_null() && !fits(setting.kind, &value) {
            let what = format!(
                "{} is {}; it must be {}",
                setting.field,
                value,
                looks(setting.kind)
            );
            return Err((line, what));
        }
        if !is_nothing(setting.kind, &value) {
            self.values.insert(setting.field, (line, value));
        }
        Ok(())
    }

    /// The text of a field, if it is set.
    #[must_use]
    pub fn text(&self, field: &str) -> Option<&str> {
        self.values.get(field)?.1.as_str()
    }

    #[must_use]
    pub fn flag(&self, field: &str) -> bool {
        let value = self.values.get(field).map(|(_, value)| value);
        value == Some(&Value::Bool(true))
    }

    #[must_use]
    pub fn number(&self, field: &str) -> Option<i64> {
        self.values.get(field)?.1.as_i64()
    }

    #[must_use]
    pub fn span(&self, field: &str) -> Option<Duration> {
        duration(self.text(field)?).ok()
    }

    /// The gates that are set, and to what.
    pub fn gates(&self) -> impl Iterator<Item = (&str, bool)> {
        let gates = self.values.get("featureGates");
        let gates = gates
            .and_then(|(_, gates)| gates.as_object())
            .into_iter()
            .flatten();
        gates.map(|(name, on)| (name.as_str(), on == &Value::Bool(true)))
    }

    /// Where to serve on this port if nothing is said: kube-proxy's addresses, of the family of its
    /// `bindAddress`.
    #[must_use]
    pub fn default_address(&self, port: u16) -> String {
        let v6 = self.text("bindAddress").is_some_and(|at| at.contains(':'));
        let host = match (port, v6) {
            (METRICS_PORT, false) => "127.0.0.1",
            (METRICS_PORT, true) => "[::1]",
            (_, false) => "0.0.0.0",
            (_, true) => "[::]",
        };
        format!("{host}:{port}")
    }

    /// That of the section that `mode` names, or kube-proxy's default.
    #[must_use]
    pub fn sync_period(&self) -> Duration {
        let field = match self.text("mode") {
            Some("ipvs") => "ipvs.syncPeriod",
            Some("nftables") => "nftables.syncPeriod",
            _ => "iptables.syncPeriod",
        };
        self.span(field).unwrap_or(SYNC_PERIOD)
    }

    /// Whether `spec.externalIPs` are served.
    #[must_use]
    pub fn external_ips(&self) -> bool {
        let mut gates = self.gates();
        gates
            .find(|(gate, _)| *gate == EXTERNAL_IPS)
            .is_none_or(|(_, on)| on)
    }

    /// Which clients are hidden behind this node.
    ///
    /// # Errors
    ///
    /// A value is none of kube-proxy's, or one is missing that the mode needs.
    pub fn local(&self) -> anyhow::Result<Local> {
        let mode = self.text("detectLocalMode").unwrap_or_default();
        let name = |field: &str| {
            let name = self.text(field).unwrap_or_default();
            ensure!(!name.is_empty(), "{field} must be set in this mode");
            Ok(name.to_owned())
        };
        let detect = match mode {
            "" | "ClusterCIDR" => self.cluster_cidrs().map(Detect::Ranges),
            "NodeCIDR" => Ok(Detect::NodeRanges),
            "BridgeInterface" => name("detectLocal.bridgeInterface").map(Detect::Bridge),
            "InterfaceNamePrefix" => name("detectLocal.interfaceNamePrefix").map(Detect::Prefix),
            other => Err(anyhow!(
                "{other:?} is no mode; write ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"
            )),
        };
        Ok(Local {
            masquerade_all: ["iptables.masqueradeAll", "nftables.masqueradeAll"]
                .iter()
                .any(|field| self.flag(field)),
            detect: detect.with_context(|| self.place("detectLocalMode"))?,
        })
    }

    fn cluster_cidrs(&self) -> anyhow::Result<Vec<Cidr>> {
        let texts = self.text("clusterCIDR").unwrap_or_default().split(',');
        let texts = texts.map(str::trim).filter(|text| !text.is_empty());
        let cidr = |text| {
            let cidr = value::cidr(text).map_err(|why| anyhow!("{why}"));
            cidr.with_context(|| self.place("clusterCIDR"))
        };
        texts.map(cidr).collect()
    }

    /// What to log, if a verbosity says more than the default.
    #[must_use]
    pub fn log_level(&self) -> Option<&'static str> {
        match self.number("logging.verbosity")? {
            ..4 => None,
            4..6 => Some("debug"),
            6.. => Some("trace"),
        }
    }

    /// A line for each that is set and has no meaning here.
    #[must_use]
    pub fn meaningless(&self) -> Vec<String> {
        let fields = self.values.keys().filter_map(|field| {
            let Meaning::None(why) = of_field(field)?.meaning else {
                return None;
            };
            Some(format!("{} has no meaning here: {why}", self.place(field)))
        });
        let gates = self.gates().filter(|(gate, _)| *gate != EXTERNAL_IPS);
        let gates = gates.map(|(gate, _)| {
            let place = self.place("featureGates");
            format!("{place}: {gate} has no meaning here: nothing that nearhop does depends on it")
        });
        fields.chain(gates).collect()
    }

    /// A line for each that is set and is followed for packets only, where none is looked at.
    #[must_use]
    pub fn without_packets(&self) -> Vec<String> {
        const FOR_PACKETS: [&str; 6] = [
            "clusterCIDR",
            "detectLocal.bridgeInterface",
            "detectLocal.interfaceNamePrefix",
            "detectLocalMode",
            "iptables.masqueradeAll",
            "nftables.masqueradeAll",
        ];
        let set = FOR_PACKETS
            .iter()
            .filter(|field| self.values.contains_key(**field));
        let line = |field: &&str| {
            let place = self.place(field);
            format!("{place} has no meaning here: without --packet-path no packet is masqueraded")
        };
        set.map(line).collect()
    }

    /// By what name, and where, an operator finds a setting.
    #[must_use]
    pub fn place(&self, field: &str) -> String {
        match (&self.file, self.values.get(field)) {
            (Some(file), Some((line, _))) => format!("{}:{line}: {field}", file.display()),
            (Some(file), None) => format!("{}: {field}", file.display()),
            (None, _) => of_field(field).map_or_else(String::new, |of| format!("--{}", of.flag)),
        }
    }

    /// The values as the file's fields, one within the other.
    #[must_use]
    pub fn as_fields(&self) -> Value {
        let mut root = Value::Object(serde_json::Map::new());
        for (field, (_, value)) in &self.values {
            let mut at = &mut root;
            for part in field.split('.') {
                at = &mut at[part];
            }
            *at = value.clone();
        }
        root
    }
}

/// The line, and what is wrong there.
type Wrong = (u64, String);

fn check_kind(fields: &Fields, line: u64) -> Result<(), Wrong> {
    for (name, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        let field = fields.iter().find(|(key, _)| key.value == name);
        match field {
            Some((_, Tree::Leaf(Value::String(found)))) if found == expected => {}
            Some((key, _)) => {
                let what = format!("{name} must be {expected}, the only one that is read");
                return Err((key.referenced.line(), what));
            }
            None => return Err((line, format!("no {name}; add {name}: {expected}"))),
        }
    }
    Ok(())
}

fn is_section(path: &str) -> bool {
    let inside = |setting: &Setting| {
        let rest = setting.field.strip_prefix(path);
        rest.is_some_and(|rest| rest.starts_with('.'))
    };
    SETTINGS.iter().any(inside)
}

fn unknown(field: &str) -> String {
    let near = |setting: &Setting| strsim::jaro_winkler(field, setting.field);
    let nearest = SETTINGS.iter().max_by(|a, b| near(a).total_cmp(&near(b)));
    let nearest = nearest.map_or("", |setting| setting.field);
    format!(
        "no field {field} in {API_VERSION}; the nearest one is {nearest}: correct it, or remove it"
    )
}

fn fits(kind: Kind, value: &Value) -> bool {
    match kind {
        // infoBufferSize is a quantity: a number will do.
        Kind::Text => value.is_string() || value.is_number(),
        Kind::Flag | Kind::On => value.is_boolean(),
        Kind::Number => value.is_number(),
        Kind::Span => value.as_str().is_some_and(|text| duration(text).is_ok()),
        Kind::List => value.is_array(),
        Kind::Gates => value
            .as_object()
            .is_some_and(|gates| gates.values().all(Value::is_boolean)),
    }
}

/// As Go's flags are written.
fn of_flag(kind: Kind, text: &str) -> Option<Value> {
    let value = match kind {
        Kind::Text | Kind::Span => text.into(),
        Kind::Flag | Kind::On => text.parse::<bool>().ok()?.into(),
        Kind::Number => text
            .parse::<f64>()
            .ok()
            .map(|_| serde_json::from_str(text).ok())??,
        Kind::List => text.split(',').filter(|item| !item.is_empty()).collect(),
        Kind::Gates => {
            let gates = text.split(',').filter(|gate| !gate.is_empty()).map(|gate| {
                let (name, on) = gate.split_once('=')?;
                Some((name.trim().to_owned(), Value::Bool(on.trim().parse().ok()?)))
            });
            gates.collect::<Option<serde_json::Map<_, _>>>()?.into()
        }
    };
    fits(kind, &value).then_some(value)
}

fn looks(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "a text",
        Kind::Flag | Kind::On => "true or false",
        Kind::Number => "a number",
        Kind::Span => "a span of time such as 30s or 1m30s",
        Kind::List => "a list",
        Kind::Gates => "names, each with true or false",
    }
}

fn is_nothing(kind: Kind, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => *on == (kind == Kind::On),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) if kind == Kind::Span => {
            duration(text).is_ok_and(|span| span.is_zero())
        }
        Value::String(text) => text.is_empty() || text == "0",
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// The file as it is written, with the line of each field.
enum Tree {
    Map(Fields),
    Leaf(Value),
}

type Fields = Vec<(Spanned<String>, Tree)>;

impl Tree {
    fn into_value(self) -> Value {
        match self {
            Self::Leaf(value) => value,
            Self::Map(fields) => fields
                .into_iter()
                .map(|(key, tree)| (key.value, tree.into_value()))
                .collect(),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Grow)
    }
}

struct Grow;

impl<'de> Visitor<'de> for Grow {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fields, a list, a text, a number, true, false or null")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut fields = Fields::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Tree::Map(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element()? {
            values.push(value);
        }
        Ok(Tree::Leaf(Value::Array(values)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf(text.into()))
    }

    fn visit_bool<E>(self, on: bool) -> Result<Tree, E> {
        Ok(Tree::Leaf(on.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Tree, E> {
        Ok(Tree::Leaf(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Tree, E> {
        Ok(Tree::Leaf(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Tree, E> {
        Ok(Tree::Leaf(number.into()))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf(Value::Null))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kubeadm writes it, every field that kube-proxy has.
    const KUBEADM: &str = include_str!("kubeadm.yaml");

    fn parse(text: &str) -> Result<Given, String> {
        Given::parse(Path::new("config.conf"), text).map_err(|error| error.to_string())
    }

    /// A file with these lines after the first two.
    fn with(lines: &str) -> Result<Given, String> {
        parse(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{lines}"))
    }

    #[test]
    fn what_kubeadm_writes_is_read_and_says_what_has_no_meaning() {
        let given = parse(KUBEADM).unwrap();

        assert_eq!(
            given.text("clientConnection.kubeconfig"),
            Some("/var/lib/kube-proxy/kubeconfig.conf")
        );
        assert_eq!(given.sync_period(), SYNC_PERIOD);
        assert_eq!(given.default_address(METRICS_PORT), "127.0.0.1:10249");
        assert_eq!(given.log_level(), None);
        assert!(given.external_ips());
        assert_eq!(given.meaningless(), Vec::<String>::new());
        let ranges = given.local().unwrap();
        assert!(!ranges.masquerade_all);
        assert_eq!(
            ranges.detect,
            Detect::Ranges(vec![value::cidr("10.244.0.0/16").unwrap()])
        );
    }

    #[test]
    fn kubeadms_file_has_a_line_for_each_field() {
        let lines: Vec<_> = KUBEADM.lines().map(str::trim).collect();
        for setting in SETTINGS.iter().filter(|setting| !setting.field.is_empty()) {
            let name = setting.field.rsplit('.').next().unwrap_or_default();
            let optional = [
                "featureGates",
                "logging.flushFrequency",
                "logging.format",
                "logging.options.json.splitStream",
                "logging.options.text.splitStream",
                "logging.vmodule",
                "windowsRunAsService",
            ];
            let found = lines
                .iter()
                .any(|line| line.starts_with(&format!("{name}:")));
            assert!(
                found || optional.contains(&setting.field),
                "{}",
                setting.field
            );
        }
    }

    #[test]
    fn the_defaults_that_are_written_are_the_defaults() {
        let given = parse(DEFAULTS).unwrap();
        let nothing = Given::default();

        assert_eq!(given.meaningless(), [""; 0]);
        assert_eq!(given.sync_period(), nothing.sync_period());
        assert_eq!(given.external_ips(), nothing.external_ips());
        assert_eq!(given.log_level(), nothing.log_level());
        for (field, port) in [("healthzBindAddress", 10256), ("metricsBindAddress", 10249)] {
            assert_eq!(given.text(field), Some(&*nothing.default_address(port)));
            assert_eq!(given.default_address(port), nothing.default_address(port));
        }
    }

    #[test]
    fn what_is_set_is_found() {
        let given = with(
            "mode: nftables\nbindAddress: '::'\nbindAddressHardFail: true\n\
             nftables: {syncPeriod: 1m30s}\niptables: {syncPeriod: 7s}\n\
             featureGates: {AllowServiceExternalIPs: false}\nlogging: {verbosity: 6}\n",
        );
        let given = given.unwrap();

        assert_eq!(given.sync_period(), Duration::from_secs(90));
        assert_eq!(given.default_address(10256), "[::]:10256");
        assert!(given.flag("bindAddressHardFail") && !given.external_ips());
        assert_eq!(given.log_level(), Some("trace"));
        assert_eq!(given.as_fields()["nftables"]["syncPeriod"], "1m30s");
    }

    #[test]
    fn a_field_without_meaning_is_named_with_its_line() {
        let given = with(
            "conntrack:\n  maxPerCore: 1\n  min: 0\nfeatureGates: {KubeProxyIPVS: false}\n\
                  iptables: {localhostNodePorts: false, masqueradeAll: false}\n",
        );

        assert_eq!(
            given.unwrap().meaningless(),
            [
                "config.conf:4: conntrack.maxPerCore has no meaning here: connections are translated at the \
                 socket, so none is tracked",
                "config.conf:7: iptables.localhostNodePorts has no meaning here: NodePorts are not served \
                 yet",
                "config.conf:6: featureGates: KubeProxyIPVS has no meaning here: nothing that nearhop does \
                 depends on it",
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_file_line_and_remedy() {
        for (lines, expected) in [
            (
                "metricBindAddress: ''",
                "config.conf:3: no field metricBindAddress in kubeproxy.config.k8s.io/v1alpha1; the nearest \
                 one is metricsBindAddress: correct it, or remove it",
            ),
            (
                "mode: ''\niptables:\n  masquerade: true",
                "config.conf:5: no field iptables.masquerade in",
            ),
            (
                "bindAddressHardFail: 'yes'",
                "config.conf:3: bindAddressHardFail is \"yes\"; it must be true or false",
            ),
            (
                "iptables: {syncPeriod: 30}",
                "iptables.syncPeriod is 30; it must be a span of time such as 30s",
            ),
            ("clusterCIDR: [10.0.0.0/8]", "it must be a text"),
            ("nodePortAddresses: primary", "it must be a list"),
            (
                "featureGates: {A: 1}",
                "it must be names, each with true or false",
            ),
            (
                "iptables: 1",
                "config.conf:3: iptables must have fields of its own",
            ),
            ("mode: ''\nmode: ipvs", "mode"),
            ("mode: [", "well-formed"),
        ] {
            let error = with(lines).unwrap_err();

            assert!(
                error.starts_with("config.conf:") && error.contains(expected),
                "{lines}: {error}"
            );
        }
        for (text, expected) in [
            ("", "it must be a KubeProxyConfiguration"),
            ("[]", "it must be a KubeProxyConfiguration"),
            (
                "kind: KubeProxyConfiguration",
                "add apiVersion: kubeproxy.config.k8s.io/v1alpha1",
            ),
            (
                "apiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration",
                "config.conf:1: apiVersion must be kubeproxy.config.k8s.io/v1alpha1",
            ),
            (
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeletConfiguration",
                "config.conf:2: kind must be KubeProxyConfiguration",
            ),
        ] {
            let error = parse(text).unwrap_err();

            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn pods_are_told_from_others_as_the_mode_says() {
        let of = |flags: &[(&str, &str)]| {
            let setting = |name: &str| SETTINGS.iter().find(|setting| setting.flag == name);
            let flags = flags
                .iter()
                .map(|(name, text)| (setting(name).unwrap(), *text));
            let local = Given::of_flags(flags).unwrap().local();
            local
                .map(|local| local.detect)
                .map_err(|error| format!("{error:#}"))
        };
        let ranges = ["10.244.0.0/16", "fd00::/48"].map(|text| value::cidr(text).unwrap());

        assert_eq!(of(&[]), Ok(Detect::Ranges(Vec::new())));
        let both = of(&[("cluster-cidr", "10.244.0.0/16, fd00::/48")]);
        assert_eq!(both, Ok(Detect::Ranges(ranges.to_vec())));
        assert_eq!(
            of(&[("detect-local-mode", "NodeCIDR")]),
            Ok(Detect::NodeRanges)
        );
        let prefix = [
            ("detect-local-mode", "InterfaceNamePrefix"),
            ("pod-interface-name-prefix", "cali"),
        ];
        assert_eq!(of(&prefix), Ok(Detect::Prefix("cali".to_owned())));
        for (flags, word) in [
            (("detect-local-mode", "BridgeInterface"), "bridgeInterface"),
            (("detect-local-mode", "Cluster"), "InterfaceNamePrefix"),
            (("cluster-cidr", "10.0.0.0"), "--cluster-cidr"),
        ] {
            let error = of(&[flags]).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn flags_are_read_as_go_writes_them() {
        let flag = |name: &str| {
            SETTINGS
                .iter()
                .find(|setting| setting.flag == name)
                .unwrap()
        };
        let of = |name, text| Given::of_flags([(flag(name), text)]);

        assert_eq!(of("v", "4").unwrap().log_level(), Some("debug"));
        let gates = of("feature-gates", "AllowServiceExternalIPs=false,Other=true").unwrap();
        assert!(!gates.external_ips());
        assert_eq!(gates.gates().count(), 2);
        let period = of("iptables-sync-period", "5s").unwrap();
        assert_eq!(period.sync_period(), Duration::from_secs(5));
        assert!(
            of("masquerade-all", "true")
                .unwrap()
                .local()
                .unwrap()
                .masquerade_all
        );
        assert_eq!(
            of("masquerade-all", "true").unwrap().without_packets(),
            [
                "--masquerade-all has no meaning here: without --packet-path no packet is masqueraded"
            ]
        );
        let bit = of("iptables-masquerade-bit", "7").unwrap().meaningless();
        assert_eq!(
            bit,
            [
                "--iptables-masquerade-bit has no meaning here: a packet is masqueraded where its backend is \
                 chosen, so none is marked"
            ]
        );
        for (name, text) in [
            ("v", "x"),
            ("masquerade-all", "yes"),
            ("conntrack-udp-timeout", "5"),
            ("feature-gates", "A"),
        ] {
            let error = of(name, text).unwrap_err();
            assert!(
                error.contains(&format!("--{name} {text}: it must be")),
                "{error}"
            );
        }
    }

    #[test]
    fn the_operations_page_has_a_row_for_every_setting() {
        let page = include_str!("../../../docs/operations.md");
        let code = |text: String| {
            if text.len() > 2 {
                format!("`{text}`")
            } else {
                "–".to_owned()
            }
        };
        for setting in SETTINGS {
            let (field, flag) = (
                code(setting.field.to_owned()),
                code(format!("--{}", setting.flag)),
            );
            let meaning = match setting.meaning {
                Meaning::Honoured(how) => format!("**followed**: {how}"),
                Meaning::None(why) => format!("no meaning: {why}"),
            };
            let row = format!("| {field} | {flag} | {meaning} |");
            assert!(page.contains(&row), "docs/operations.md lacks\n{row}");
        }
    }
}
