//! What containerd, its network plugins and the kubelet of a node are told. Where this differs from what
//! a distribution ships, a comment says which lack of this host it is for: there may be no systemd, no
//! AppArmor, no huge pages, and a root without CAP_SYS_RESOURCE.

use std::{path::Path, thread};

use serde_json::{Value, json};

use crate::kind::Node;

/// containerd's own place, in a `/run` that each node has for itself.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// Where Debian's containernetworking-plugins lie.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// The image of sandboxes and of the pods of the tests.
pub const POD_IMAGE: &str = concat!("docker.io/nearhop/test-pod:", env!("CARGO_PKG_VERSION"));

pub(super) fn containerd(cni: &Path, runtime: &Path) -> String {
    let (cni, runtime) = (cni.display(), runtime.display());
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{POD_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runtime}"
"#
    )
}

/// Routed pods without masquerade, in both families.
pub(super) fn cni(node: Node) -> Value {
    let ranges = node.pod_ranges().map(|range| json!([{"subnet": range}]));
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-ipam",
                    "ranges": ranges,
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

pub(super) fn kubelet(node: Node, dns: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // It can be reached from the nodes' namespaces only.
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "clusterDNS": [dns],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": "/",
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "systemReserved": {"cpu": format!("{}m", reserved_millis(node))},
        // Lowering it needs CAP_SYS_RESOURCE.
        "oomScoreAdj": 0,
        // It must not set what belongs to the whole machine; see `first::sysctls`.
        "protectKernelDefaults": true,
        "makeIPTablesUtilChains": false,
        // The machine's disk is not the node's to keep free.
        "evictionHard": {
            "memory.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
    })
}

fn reserved_millis(node: Node) -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    processors * 1000 * node.reserved / 100
}
