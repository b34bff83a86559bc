//! Every setting that kube-proxy has, by its field in the configuration file and by its flag, and what
//! becomes of it here. The one place: what is read, what the log says and what
//! `docs/operations.md` tabulates all follow it.

/// One setting of kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The path of the field; empty for what is a flag only.
    pub field: &'static str,
    /// Without the dashes; empty for what is a field only.
    pub flag: &'static str,
    pub kind: Kind,
    pub meaning: Meaning,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Flag,
    /// A flag that is on unless it is switched off.
    On,
    Number,
    /// As Go writes it: `1m30s`.
    Span,
    List,
    /// Names, each with whether it is on.
    Gates,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It is followed; the text says how.
    Honoured(&'static str),
    /// It is read, and nothing follows; the text says why.
    None(&'static str),
}

impl Setting {
    /// By what an operator knows it.
    #[must_use]
    pub fn name(&self) -> String {
        match self.field {
            "" => format!("--{}", self.flag),
            field => field.to_owned(),
        }
    }

    #[must_use]
    pub fn is_honoured(&self) -> bool {
        matches!(self.meaning, Meaning::Honoured(_))
    }
}

/// The setting with this field.
#[must_use]
pub fn of_field(field: &str) -> Option<&'static Setting> {
    SETTINGS
        .iter()
        .find(|setting| setting.field == field && !field.is_empty())
}

const NO_CONNTRACK: Meaning =
    Meaning::None("connections are translated at the socket, so none is tracked");
const NO_MARKS: Meaning =
    Meaning::None("a packet is masqueraded where its backend is chosen, so none is marked");
const MASQUERADE_ALL: Meaning = Meaning::Honoured(
    "all packets to ClusterIPs are masqueraded; the sections for iptables and nftables mean the same",
);
const NAMES_PODS: Meaning =
    Meaning::Honoured("in the mode of that name: clients that come in there are pods");
const NO_IPVS: Meaning = Meaning::None("IPVS is not used");
const NO_WINDOWS: Meaning = Meaning::None("this is not Windows");
const NO_KLOG: Meaning = Meaning::None("the log is not klog's; see --log-level and --log-format");
const AT_ONCE: Meaning = Meaning::None("a change is programmed at once");
const NO_NODE_PORTS: Meaning = Meaning::None("NodePorts are not served yet");
const WATCH_LIMITS: Meaning =
    Meaning::None("four watches and a few Events need no limit of requests");
const SYNC_PERIOD: Meaning = Meaning::Honoured(
    "as --sync-period, if mode names this section: a change that waits for two of them makes the agent \
     unhealthy. There is nothing to repeat: a failed sync is tried again within 5 s",
);

/// All, in the order of the fields' names; flags without a field last.
pub const SETTINGS: &[Setting] = &[
    row(
        "bindAddress",
        "bind-address",
        Kind::Text,
        Meaning::Honoured(
            "an IPv6 address makes the default addresses of health and metrics IPv6; the node's own address is not needed",
        ),
    ),
    row(
        "bindAddressHardFail",
        "bind-address-hard-fail",
        Kind::Flag,
        Meaning::Honoured("as --bind-address-hard-fail"),
    ),
    row(
        "clientConnection.acceptContentTypes",
        "",
        Kind::Text,
        Meaning::None("objects are asked for as JSON"),
    ),
    row(
        "clientConnection.burst",
        "kube-api-burst",
        Kind::Number,
        WATCH_LIMITS,
    ),
    row(
        "clientConnection.contentType",
        "kube-api-content-type",
        Kind::Text,
        Meaning::None("objects are asked for as JSON"),
    ),
    row(
        "clientConnection.kubeconfig",
        "kubeconfig",
        Kind::Text,
        Meaning::Honoured("as --kubeconfig"),
    ),
    row(
        "clientConnection.qps",
        "kube-api-qps",
        Kind::Number,
        WATCH_LIMITS,
    ),
    row(
        "clusterCIDR",
        "cluster-cidr",
        Kind::Text,
        Meaning::Honoured(
            "clients in the first range of each family are pods; others are masqueraded, unless a family has no range",
        ),
    ),
    row(
        "configSyncPeriod",
        "config-sync-period",
        Kind::Span,
        Meaning::None("a watch that goes silent is noticed, so nothing is read again without need"),
    ),
    row(
        "conntrack.maxPerCore",
        "conntrack-max-per-core",
        Kind::Number,
        NO_CONNTRACK,
    ),
    row("conntrack.min", "conntrack-min", Kind::Number, NO_CONNTRACK),
    row(
        "conntrack.tcpBeLiberal",
        "conntrack-tcp-be-liberal",
        Kind::Flag,
        NO_CONNTRACK,
    ),
    row(
        "conntrack.tcpCloseWaitTimeout",
        "conntrack-tcp-timeout-close-wait",
        Kind::Span,
        NO_CONNTRACK,
    ),
    row(
        "conntrack.tcpEstablishedTimeout",
        "conntrack-tcp-timeout-established",
        Kind::Span,
        NO_CONNTRACK,
    ),
    row(
        "conntrack.udpStreamTimeout",
        "conntrack-udp-timeout-stream",
        Kind::Span,
        NO_CONNTRACK,
    ),
    row(
        "conntrack.udpTimeout",
        "conntrack-udp-timeout",
        Kind::Span,
        NO_CONNTRACK,
    ),
    row(
        "detectLocal.bridgeInterface",
        "pod-bridge-interface",
        Kind::Text,
        NAMES_PODS,
    ),
    row(
        "detectLocal.interfaceNamePrefix",
        "pod-interface-name-prefix",
        Kind::Text,
        NAMES_PODS,
    ),
    row(
        "detectLocalMode",
        "detect-local-mode",
        Kind::Text,
        Meaning::Honoured(
            "ClusterCIDR, NodeCIDR (podCIDRs of the Node, followed), BridgeInterface or InterfaceNamePrefix: how pods are told from others",
        ),
    ),
    row(
        "enableProfiling",
        "profiling",
        Kind::Flag,
        Meaning::None("there is no /debug/pprof; use perf"),
    ),
    row(
        "featureGates",
        "feature-gates",
        Kind::Gates,
        Meaning::Honoured(
            "AllowServiceExternalIPs is followed; each other gate gets a line of its own that it has no meaning",
        ),
    ),
    row(
        "healthzBindAddress",
        "healthz-bind-address",
        Kind::Text,
        Meaning::Honoured("as --healthz-bind-address"),
    ),
    row(
        "hostnameOverride",
        "hostname-override",
        Kind::Text,
        Meaning::Honoured("as --node; the flag wins over the file"),
    ),
    row(
        "iptables.localhostNodePorts",
        "iptables-localhost-nodeports",
        Kind::On,
        NO_NODE_PORTS,
    ),
    row(
        "iptables.masqueradeAll",
        "masquerade-all",
        Kind::Flag,
        MASQUERADE_ALL,
    ),
    row(
        "iptables.masqueradeBit",
        "iptables-masquerade-bit",
        Kind::Number,
        NO_MARKS,
    ),
    row(
        "iptables.minSyncPeriod",
        "iptables-min-sync-period",
        Kind::Span,
        AT_ONCE,
    ),
    row(
        "iptables.syncPeriod",
        "iptables-sync-period",
        Kind::Span,
        SYNC_PERIOD,
    ),
    row(
        "ipvs.excludeCIDRs",
        "ipvs-exclude-cidrs",
        Kind::List,
        NO_IPVS,
    ),
    row(
        "ipvs.minSyncPeriod",
        "ipvs-min-sync-period",
        Kind::Span,
        AT_ONCE,
    ),
    row(
        "ipvs.scheduler",
        "ipvs-scheduler",
        Kind::Text,
        Meaning::None("backends are chosen at random"),
    ),
    row("ipvs.strictARP", "ipvs-strict-arp", Kind::Flag, NO_IPVS),
    row(
        "ipvs.syncPeriod",
        "ipvs-sync-period",
        Kind::Span,
        SYNC_PERIOD,
    ),
    row(
        "ipvs.tcpFinTimeout",
        "ipvs-tcpfin-timeout",
        Kind::Span,
        NO_IPVS,
    ),
    row("ipvs.tcpTimeout", "ipvs-tcp-timeout", Kind::Span, NO_IPVS),
    row("ipvs.udpTimeout", "ipvs-udp-timeout", Kind::Span, NO_IPVS),
    row(
        "logging.flushFrequency",
        "log-flush-frequency",
        Kind::Text,
        Meaning::None("each line is written at once"),
    ),
    row(
        "logging.format",
        "logging-format",
        Kind::Text,
        Meaning::Honoured("as --log-format: text or json"),
    ),
    row(
        "logging.options.json.infoBufferSize",
        "log-json-info-buffer-size",
        Kind::Text,
        NO_KLOG,
    ),
    row(
        "logging.options.json.splitStream",
        "log-json-split-stream",
        Kind::Flag,
        NO_KLOG,
    ),
    row(
        "logging.options.text.infoBufferSize",
        "log-text-info-buffer-size",
        Kind::Text,
        NO_KLOG,
    ),
    row(
        "logging.options.text.splitStream",
        "log-text-split-stream",
        Kind::Flag,
        NO_KLOG,
    ),
    row(
        "logging.verbosity",
        "v",
        Kind::Number,
        Meaning::Honoured("as --log-level: below 4 info, below 6 debug, from 6 on trace"),
    ),
    row("logging.vmodule", "vmodule", Kind::List, NO_KLOG),
    row(
        "metricsBindAddress",
        "metrics-bind-address",
        Kind::Text,
        Meaning::Honoured("as --metrics-bind-address"),
    ),
    row(
        "mode",
        "proxy-mode",
        Kind::Text,
        Meaning::None("there is one mode"),
    ),
    row("nftables.masqueradeAll", "", Kind::Flag, MASQUERADE_ALL),
    row("nftables.masqueradeBit", "", Kind::Number, NO_MARKS),
    row("nftables.minSyncPeriod", "", Kind::Span, AT_ONCE),
    row("nftables.syncPeriod", "", Kind::Span, SYNC_PERIOD),
    row(
        "nodePortAddresses",
        "nodeport-addresses",
        Kind::List,
        NO_NODE_PORTS,
    ),
    row(
        "oomScoreAdj",
        "oom-score-adj",
        Kind::Number,
        Meaning::None("the kernel serves on while a killed agent is started again"),
    ),
    row(
        "portRange",
        "",
        Kind::Text,
        Meaning::None("kube-proxy does not use it either"),
    ),
    row(
        "showHiddenMetricsForVersion",
        "show-hidden-metrics-for-version",
        Kind::Text,
        Meaning::None("no metric is hidden"),
    ),
    row(
        "windowsRunAsService",
        "windows-service",
        Kind::Flag,
        NO_WINDOWS,
    ),
    row("winkernel.enableDSR", "enable-dsr", Kind::Flag, NO_WINDOWS),
    row(
        "winkernel.forwardHealthCheckVip",
        "forward-healthcheck-vip",
        Kind::Flag,
        NO_WINDOWS,
    ),
    row(
        "winkernel.networkName",
        "network-name",
        Kind::Text,
        NO_WINDOWS,
    ),
    row(
        "winkernel.rootHnsEndpointName",
        "root-hnsendpoint-name",
        Kind::Text,
        NO_WINDOWS,
    ),
    row("winkernel.sourceVip", "source-vip", Kind::Text, NO_WINDOWS),
    row(
        "",
        "config",
        Kind::Text,
        Meaning::Honoured("the file with these fields"),
    ),
    row(
        "",
        "master",
        Kind::Text,
        Meaning::Honoured("as --api-server"),
    ),
    row(
        "",
        "cleanup",
        Kind::Flag,
        Meaning::Honoured("as the command lb-agent cleanup"),
    ),
    row(
        "",
        "write-config-to",
        Kind::Text,
        Meaning::Honoured("writes a file with the defaults, and ends"),
    ),
    row(
        "",
        "init-only",
        Kind::Flag,
        Meaning::Honoured(
            "ends at once: nothing has to be done with more rights than the agent needs anyway",
        ),
    ),
    row(
        "",
        "healthz-port",
        Kind::Number,
        Meaning::None("kube-proxy has deprecated it; use --healthz-bind-address"),
    ),
    row(
        "",
        "metrics-port",
        Kind::Number,
        Meaning::None("kube-proxy has deprecated it; use --metrics-bind-address"),
    ),
    row(
        "",
        "boot-id-file",
        Kind::Text,
        Meaning::None("nothing asks for it"),
    ),
    row(
        "",
        "machine-id-file",
        Kind::Text,
        Meaning::None("nothing asks for it"),
    ),
];

const fn row(field: &'static str, flag: &'static str, kind: Kind, meaning: Meaning) -> Setting {
    Setting {
        field,
        flag,
        kind,
        meaning,
    }
}
