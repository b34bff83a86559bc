//! What a kubelet and a container runtime do for a Pod of ours: real images, run by runc with what the
//! Pod in the API server says and nothing more. On a machine of its own, with its own mounts and
//! processes, whose file systems a Pod may ask for.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::{Cluster, Node, agent::text, must, wait, worker::Place};

/// The agent's image: `NEARHOP_IMAGE`, or what `cargo xtask image` leaves.
pub fn image() -> anyhow::Result<PathBuf> {
    let built = || {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let workspace = workspace.expect("tests/ lies in the workspace");
        let (version, arch) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
        workspace.join(format!("target/images/lb-agent-{version}-{arch}.tar"))
    };
    let path = std::env::var_os("NEARHOP_IMAGE").map_or_else(built, PathBuf::from);
    ensure!(
        path.is_file(),
        "no image at {}: make it with `cargo xtask image`, or name it in NEARHOP_IMAGE",
        path.display()
    );
    Ok(path)
}

/// A node's machine: its first process, its own mounts, and no BPF file system yet. The node's cgroup is
/// the root of the hierarchy, as far as one sees there.
#[derive(Debug)]
pub struct Machine {
    place: Place,
    dir: PathBuf,
    /// `unshare`, which ends with its child.
    parent: Child,
    first: String,
}

/// The cgroup is bound aside, because the new sysfs lies over where it is.
const BOOT: &str = "
set -e
mount --bind \"$1\" \"$2\"
mount -t sysfs sysfs /sys
mount --bind \"$2\" /sys/fs/cgroup
umount \"$2\"
echo up
exec sleep infinity";

impl Machine {
    #[must_use]
    pub fn boot(node: &Node) -> Self {
        must(Self::start(node).context("booting a machine"))
    }

    fn start(node: &Node) -> anyhow::Result<Self> {
        let place = node.host().place().clone();
        let dir = node.lab().dir().join(format!("machine-{}", node.name()));
        let aside = dir.join("cgroup");
        fs::create_dir_all(&aside)?;
        let mut parent = place
            .command(Path::new("unshare"), &[])?
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", BOOT, "sh"])
            .args([node.cgroup(), &aside])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let said = parent.stdout.take().expect("standard output is piped");
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        ensure!(line == "up\n", "its message is above");
        let children = format!("/proc/{0}/task/{0}/children", parent.id());
        Ok(Self {
            place,
            dir,
            first: fs::read_to_string(children)?.trim().to_owned(),
            parent,
        })
    }

    /// A command among this machine's processes and mounts.
    fn command(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = self.place.command(Path::new("nsenter"), &[])?;
        command.args(["--target", &self.first, "--mount", "--pid", "--", program]);
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// The file systems mounted at this place, as this machine sees them.
    #[must_use]
    pub fn mounted(&self, at: &str) -> Vec<String> {
        let mounts = format!("/proc/{}/mounts", self.first);
        let mounts = must(fs::read_to_string(&mounts).context(mounts));
        let words = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        words
            .filter(|words| words[1] == at)
            .map(|words| words[2].to_owned())
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its children die with the machine's first process, which dies with it.
        let ended = self.parent.kill().and_then(|()| self.parent.wait());
        if let Err(error) = ended {
            eprintln!("ending a machine: {error}");
        }
    }
}

/// A Pod of the API server on a machine, as far as it is prepared: volumes, variables, images.
#[derive(Debug)]
pub struct PodOn<'a> {
    machine: &'a Machine,
    pod: Value,
    /// Where each volume lies on the machine.
    volumes: BTreeMap<String, PathBuf>,
    variables: BTreeMap<String, BTreeMap<String, String>>,
    resolv_conf: PathBuf,
}

impl<'a> PodOn<'a> {
    /// Reads the Pod, as admission has completed it, and gathers what it refers to.
    #[must_use]
    pub fn prepare(machine: &'a Machine, cluster: &Cluster, namespace: &str, name: &str) -> Self {
        let namespace_flag = format!("--namespace={namespace}");
        let pod = cluster.get(&["pod", name, &namespace_flag]);
        let kubelet = Kubelet {
            cluster,
            pod: &pod,
            dir: machine.dir.join(name),
        };
        let resolv_conf = machine.dir.join("resolv.conf");
        // As patient as the lab: who answers may have to wait for a processor.
        must(fs::write(
            &resolv_conf,
            "nameserver 127.0.0.1\noptions timeout:30\n",
        ));
        Self {
            machine,
            volumes: must(kubelet.volumes()),
            variables: must(kubelet.variables()),
            resolv_conf,
            pod,
        }
    }

    /// Runs a container to its end.
    #[must_use]
    pub fn run(&self, container: &str) -> Output {
        must(self.try_run(container).context(container.to_owned()))
    }

    fn try_run(&self, container: &str) -> anyhow::Result<Output> {
        let mut runc = self.runc(container)?;
        let mut child = runc.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        // It says less than a pipe holds.
        wait::until("the container to end", wait::PATIENCE, || ended(&mut child))?;
        Ok(child.wait_with_output()?)
    }

    /// Starts a container.
    #[must_use]
    pub fn start(&self, container: &str) -> Running<'_> {
        must(self.try_start(container).context(container.to_owned()))
    }

    fn try_start(&self, container: &str) -> anyhow::Result<Running<'_>> {
        let mut runc = self.runc(container)?;
        let log = self.bundle(container).join("log");
        let file = File::create(&log)?;
        Ok(Running {
            pod: self,
            name: container.to_owned(),
            child: runc.stdout(file.try_clone()?).stderr(file).spawn()?,
            log,
        })
    }

    /// `runc run` of a fresh bundle.
    fn runc(&self, container: &str) -> anyhow::Result<Command> {
        let bundle = self.bundle(container);
        let root = bundle.join("rootfs");
        if bundle.exists() {
            fs::remove_dir_all(&bundle)?;
        }
        fs::create_dir_all(&root)?;
        let entrypoint = unpack(&image()?, &root)?;
        let spec = self.spec(self.container(container)?, entrypoint)?;
        fs::write(bundle.join("config.json"), spec.to_string())?;
        let mut runc = self.at_runc()?;
        runc.arg("run").arg("--bundle").arg(bundle).arg(container);
        Ok(runc)
    }

    fn at_runc(&self) -> anyhow::Result<Command> {
        let mut runc = self.machine.command("runc")?;
        runc.arg("--root").arg(self.machine.dir.join("runc"));
        Ok(runc)
    }

    fn bundle(&self, container: &str) -> PathBuf {
        self.machine.dir.join("containers").join(container)
    }

    /// What the manifest says of a container.
    fn container(&self, name: &str) -> anyhow::Result<&Value> {
        let spec = &self.pod["spec"];
        let all = ["initContainers", "containers"].map(|kind| spec[kind].as_array());
        let mut all = all.into_iter().flatten().flatten();
        all.find(|container| container["name"] == name)
            .with_context(|| format!("the Pod has no container {name}"))
    }

    /// The capabilities that the manifest leaves a container, as the kernel names them.
    pub fn capabilities(&self, container: &str) -> anyhow::Result<Vec<String>> {
        let capabilities = &self.container(container)?["securityContext"]["capabilities"];
        ensure!(
            capabilities["drop"] == json!(["ALL"]),
            "{container} keeps what the runtime gives everybody"
        );
        let added = capabilities["add"].as_array().into_iter().flatten();
        Ok(added
            .filter_map(Value::as_str)
            .map(|name| format!("CAP_{name}"))
            .collect())
    }

    /// runc's config.json (runtime-spec, config.md), with what containerd gives a Pod in the network of
    /// its node, less its seccomp profile, which is containerd's own.
    fn spec(&self, container: &Value, entrypoint: Vec<String>) -> anyhow::Result<Value> {
        let name = container["name"].as_str().context("a name")?;
        let security = &container["securityContext"];
        let capabilities = self.capabilities(name)?;
        let may_gain = security["allowPrivilegeEscalation"] != false;
        let (env, args) = (self.environment(name), &container["args"]);
        let args = args.as_array().into_iter().flatten();
        let args = args.filter_map(Value::as_str).map(|arg| expand(arg, &env));
        let variables = env.iter().map(|(name, value)| format!("{name}={value}"));
        Ok(json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "cwd": "/",
                "args": entrypoint.into_iter().chain(args).collect::<Vec<_>>(),
                "env": variables.collect::<Vec<_>>(),
                "noNewPrivileges": !may_gain,
                "capabilities": {
                    "bounding": capabilities,
                    "effective": capabilities,
                    "permitted": capabilities,
                },
            },
            "root": {
                "path": "rootfs",
                "readonly": security["readOnlyRootFilesystem"] == true,
            },
            "mounts": self.mounts(container)?,
            "linux": {
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "mount"}, {"type": "cgroup"},
                ],
                "cgroupsPath": format!("/pod/{name}"),
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
            },
        }))
    }

    fn environment(&self, container: &str) -> BTreeMap<String, String> {
        self.variables.get(container).cloned().unwrap_or_default()
    }

    fn mounts(&self, container: &Value) -> anyhow::Result<Vec<Value>> {
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"]}),
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}),
            json!({"destination": "/etc/resolv.conf", "type": "bind", "source": self.resolv_conf,
                "options": ["rbind", "rprivate"]}),
        ];
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let volume = mount["name"].as_str().unwrap_or_default();
            let source = self.volumes.get(volume);
            let source = source.with_context(|| format!("no volume {volume}"))?;
            let access = if mount["readOnly"] == true {
                "ro"
            } else {
                "rw"
            };
            mounts.push(json!({
                "destination": mount["mountPath"],
                "type": "bind",
                "source": source,
                "options": ["rbind", "rprivate", access],
            }));
        }
        Ok(mounts)
    }
}

/// `$(NAME)` as the kubelet replaces it.
fn expand(arg: &str, variables: &BTreeMap<String, String>) -> String {
    variables.iter().fold(arg.to_owned(), |arg, (name, value)| {
        arg.replace(&format!("$({name})"), value)
    })
}

/// A container that runs until it is ended.
#[derive(Debug)]
pub struct Running<'a> {
    pod: &'a PodOn<'a>,
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running<'_> {
    /// A command in the container, as `kubectl exec` and probes run it.
    #[must_use]
    pub fn exec(&self, command: &[&str]) -> Output {
        let mut runc = must(self.pod.at_runc());
        runc.args(["exec", "--cwd", "/", &self.name]).args(command);
        must(runc.output().context("run runc exec"))
    }

    /// A file in /proc about the container's first process.
    pub fn proc(&self, file: &str) -> anyhow::Result<String> {
        let state = self.pod.at_runc()?.args(["state", &self.name]).output()?;
        let state: Value = serde_json::from_slice(&state.stdout)
            .with_context(|| text(&state.stderr).trim().to_owned())?;
        let path = format!("/proc/{}/{file}", state["pid"]);
        let output = self.pod.machine.command("cat")?.arg(&path).output()?;
        ensure!(output.status.success(), "{}", text(&output.stderr).trim());
        Ok(text(&output.stdout))
    }

    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("no log: {error}"))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// SIGTERM to the first process, and how that ended.
    #[must_use]
    pub fn stop(mut self) -> ExitStatus {
        let mut kill = must(self.pod.at_runc());
        let output = must(kill.args(["kill", &self.name, "TERM"]).output());
        assert!(output.status.success(), "{}", text(&output.stderr));
        must(wait::until("the container to end", wait::PATIENCE, || {
            ended(&mut self.child)
        }))
    }
}

fn ended(child: &mut Child) -> Result<ExitStatus, String> {
    let status = child.try_wait().map_err(|error| error.to_string())?;
    status.ok_or_else(|| "it runs".to_owned())
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- container {} ----\n{}", self.name, self.log());
        }
        let mut delete = must(self.pod.at_runc());
        // Gone already if it ended by itself.
        let _ = delete.args(["delete", "--force", &self.name]).output();
        let _ = self.child.wait();
    }
}

/// What the kubelet does before it asks the runtime for anything.
struct Kubelet<'a> {
    cluster: &'a Cluster,
    pod: &'a Value,
    dir: PathBuf,
}

impl Kubelet<'_> {
    fn volumes(&self) -> anyhow::Result<BTreeMap<String, PathBuf>> {
        let volumes = self.pod["spec"]["volumes"].as_array().into_iter().flatten();
        volumes
            .map(|volume| {
                let name = volume["name"].as_str().context("a volume's name")?;
                Ok((name.to_owned(), self.volume(name, volume)?))
            })
            .collect()
    }

    fn volume(&self, name: &str, volume: &Value) -> anyhow::Result<PathBuf> {
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            return Ok(path.into());
        }
        let Some(sources) = volume["projected"]["sources"].as_array() else {
            bail!("a volume of a kind that no Pod of ours has: {volume}");
        };
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir)?;
        for source in sources {
            self.project(&dir, source)?;
        }
        Ok(dir)
    }

    /// The files of a ServiceAccount.
    fn project(&self, dir: &Path, source: &Value) -> anyhow::Result<()> {
        let write = |path: &Value, text: &str| {
            let path = dir.join(path.as_str().context("a path")?);
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        let token = &source["serviceAccountToken"];
        if token.is_object() {
            write(&token["path"], &self.token(token))?;
        }
        for item in items(&source["configMap"]) {
            let map = self.config_map(&source["configMap"]["name"])?;
            let value = map["data"][item["key"].as_str().unwrap_or_default()].as_str();
            write(&item["path"], value.context("a key of a ConfigMap")?)?;
        }
        for item in items(&source["downwardAPI"]) {
            write(&item["path"], self.field(&item["fieldRef"])?)?;
        }
        Ok(())
    }

    /// A token that is bound to the Pod, by TokenRequest.
    fn token(&self, wanted: &Value) -> String {
        let (spec, metadata) = (&self.pod["spec"], &self.pod["metadata"]);
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let flags = [
            format!("--namespace={}", word(&metadata["namespace"])),
            format!("--duration={}s", wanted["expirationSeconds"]),
            "--bound-object-kind=Pod".to_owned(),
            format!("--bound-object-name={}", word(&metadata["name"])),
            format!("--bound-object-uid={}", word(&metadata["uid"])),
        ];
        let account = word(&spec["serviceAccountName"]);
        let mut args = vec!["create", "token", &account];
        args.extend(flags.iter().map(String::as_str));
        self.cluster.kubectl(&args).trim().to_owned()
    }

    fn config_map(&self, name: &Value) -> anyhow::Result<Value> {
        let name = name.as_str().context("a ConfigMap's name")?;
        let namespace = self.pod["metadata"]["namespace"].as_str();
        let namespace = format!("--namespace={}", namespace.unwrap_or_default());
        Ok(self.cluster.get(&["configmap", name, &namespace]))
    }

    fn field(&self, reference: &Value) -> anyhow::Result<&str> {
        let path = reference["fieldPath"].as_str().unwrap_or_default();
        let pointer = format!("/{}", path.replace('.', "/"));
        let value = self.pod.pointer(&pointer).and_then(Value::as_str);
        value.with_context(|| format!("the Pod has no field {path}"))
    }

    /// The variables of each container, with those by which every Pod is told of the API server.
    fn variables(&self) -> anyhow::Result<BTreeMap<String, BTreeMap<String, String>>> {
        let spec = &self.pod["spec"];
        let all = ["initContainers", "containers"].map(|kind| spec[kind].as_array());
        all.into_iter()
            .flatten()
            .flatten()
            .map(|container| {
                let name = container["name"].as_str().context("a container's name")?;
                let mut variables = BTreeMap::from([
                    ("PATH".to_owned(), "/".to_owned()),
                    ("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned()),
                    ("KUBERNETES_SERVICE_PORT".to_owned(), "443".to_owned()),
                ]);
                for variable in container["env"].as_array().into_iter().flatten() {
                    let name = variable["name"].as_str().context("a variable's name")?;
                    variables.insert(name.to_owned(), self.variable(variable)?);
                }
                Ok((name.to_owned(), variables))
            })
            .collect()
    }

    fn variable(&self, variable: &Value) -> anyhow::Result<String> {
        let from = &variable["valueFrom"];
        if from["fieldRef"].is_object() {
            return Ok(self.field(&from["fieldRef"])?.to_owned());
        }
        let reference = &from["configMapKeyRef"];
        if reference.is_object() {
            let map = self.config_map(&reference["name"])?;
            let key = reference["key"].as_str().unwrap_or_default();
            let value = map["data"][key].as_str();
            return Ok(value.with_context(|| format!("no key {key}"))?.to_owned());
        }
        let value = variable["value"].as_str();
        Ok(value.context("a variable's value")?.to_owned())
    }
}

fn items(source: &Value) -> impl Iterator<Item = &Value> {
    source["items"].as_array().into_iter().flatten()
}

/// Unpacks an image with one layer, as `cargo xtask image` makes it, and returns its entrypoint.
fn unpack(image: &Path, root: &Path) -> anyhow::Result<Vec<String>> {
    let index: Value = document(image, "index.json")?;
    let manifest = document(image, &blob(&index["manifests"][0])?)?;
    let config = document(image, &blob(&manifest["config"])?)?;
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let layer = member(image, &blob(layer)?)?;
        let path = root.with_file_name("layer.tar.gz");
        fs::write(&path, layer)?;
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(&path).arg("-C").arg(root);
        let output = tar.output().context("run tar")?;
        ensure!(output.status.success(), "tar: {}", text(&output.stderr));
    }
    Ok(serde_json::from_value(
        config["config"]["Entrypoint"].clone(),
    )?)
}

fn blob(descriptor: &Value) -> anyhow::Result<String> {
    let digest = descriptor["digest"].as_str().context("a digest")?;
    Ok(format!("blobs/{}", digest.replace(':', "/")))
}

fn document(image: &Path, name: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&member(image, name)?)?)
}

fn member(image: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let mut tar = Command::new("tar");
    let output = tar.arg("-xOf").arg(image).arg(name).output()?;
    ensure!(output.status.success(), "tar: {}", text(&output.stderr));
    Ok(output.stdout)
}
