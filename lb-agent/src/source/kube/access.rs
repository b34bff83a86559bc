//! How an API server is reached: a kubeconfig, or what a pod is given, and an address that overrides
//! theirs where no kube-proxy makes the Service `kubernetes` reachable.

use std::path::{Path, PathBuf};

use kube::{
    Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use crate::source::kube::watch::chain;

/// What the operator said about the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// `None`: the `ServiceAccount` of the pod this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// Overrides the address.
    pub api_server: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("cannot use the kubeconfig {}: {}; correct it, or name another one", .path.display(), chain(.error))]
    Kubeconfig {
        path: PathBuf,
        error: Box<KubeconfigError>,
    },
    #[error(
        "no source of objects: give --objects DIR or --kubeconfig FILE; without either, this must be a \
         pod with a ServiceAccount, and it is none: {}", chain(.0)
    )]
    NotInCluster(InClusterError),
    #[error("--api-server {url:?} is no address of a server: {why}; write it as https://HOST:PORT")]
    ApiServer { url: String, why: String },
}

impl Access {
    /// # Errors
    ///
    /// What was said cannot be used; the error says what to say.
    pub async fn load(&self) -> Result<Config, AccessError> {
        let mut config = match &self.kubeconfig {
            Some(path) => of_file(path).await?,
            None => self.in_cluster()?,
        };
        if let Some(url) = &self.api_server {
            config.cluster_url = parse(url)?;
        }
        Ok(config)
    }

    /// A pod without the variables of the Service `kubernetes` needs none if it is told the address.
    fn in_cluster(&self) -> Result<Config, AccessError> {
        let config = match &self.api_server {
            Some(_) => Config::incluster_dns(),
            None => Config::incluster_env(),
        };
        config.map_err(AccessError::NotInCluster)
    }
}

async fn of_file(path: &Path) -> Result<Config, AccessError> {
    let failed = |error| AccessError::Kubeconfig {
        path: path.to_owned(),
        error: Box::new(error),
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options);
    config.await.map_err(failed)
}

fn parse(url: &str) -> Result<http::Uri, AccessError> {
    let bad = |why: String| AccessError::ApiServer {
        url: url.to_owned(),
        why,
    };
    let uri: http::Uri = url
        .parse()
        .map_err(|error: http::uri::InvalidUri| bad(error.to_string()))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err(bad("it needs a scheme and a host".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: 'https://10.96.0.1:443'}}]
users: [{name: u, user: {token: t}}]
";

    async fn load(kubeconfig: &str, api_server: Option<&str>) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubeconfig");
        fs::write(&file, kubeconfig).unwrap();
        let access = Access {
            kubeconfig: Some(file.clone()),
            api_server: api_server.map(str::to_owned),
        };
        let loaded = access.load().await;
        let told = |error: AccessError| {
            error
                .to_string()
                .replace(&file.display().to_string(), "FILE")
        };
        loaded
            .map(|config| config.cluster_url.to_string())
            .map_err(told)
    }

    #[tokio::test]
    async fn the_address_is_the_files_unless_another_is_given() {
        assert_eq!(
            load(KUBECONFIG, None).await.as_deref(),
            Ok("https://10.96.0.1:443/")
        );
        assert_eq!(
            load(KUBECONFIG, Some("https://192.0.2.1:6443"))
                .await
                .as_deref(),
            Ok("https://192.0.2.1:6443/")
        );
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_named_with_its_remedy() {
        for (kubeconfig, api_server, expected) in [
            ("]", None, "cannot use the kubeconfig FILE: "),
            ("", None, "cannot use the kubeconfig FILE: "),
            (
                KUBECONFIG,
                Some("192.0.2.1"),
                "--api-server \"192.0.2.1\" is no address",
            ),
            (
                KUBECONFIG,
                Some("ftp://192.0.2.1"),
                "write it as https://HOST:PORT",
            ),
        ] {
            let error = load(kubeconfig, api_server).await.unwrap_err();

            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn without_a_kubeconfig_it_must_be_a_pod() {
        let error = Access::default().load().await.unwrap_err().to_string();

        assert!(
            error.starts_with("no source of objects: give --objects DIR or"),
            "{error}"
        );
    }
}
