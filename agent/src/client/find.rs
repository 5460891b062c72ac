//! Which API server: the order of the sources, and what is taken from each.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use kube::{
    Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};

use super::{Error, Options};

/// Where the API server's address came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An explicit address, with the ServiceAccount's identity.
    Flag,
    /// An explicit kubeconfig (its address possibly overridden by the flag).
    Kubeconfig(PathBuf),
    /// Address and CA of the node's kubelet.
    Kubelet(PathBuf),
    /// `KUBERNETES_SERVICE_HOST` and `_PORT`.
    InCluster,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("explicit address"),
            Self::Kubeconfig(path) => write!(f, "kubeconfig {}", path.display()),
            Self::Kubelet(path) => write!(f, "the kubelet's {}", path.display()),
            Self::InCluster => f.write_str("in-cluster variables"),
        }
    }
}

/// An API server, and how to speak to it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where the address came from.
    pub origin: Origin,
    /// Address, CA and identity.
    pub config: Config,
}

/// Looks for the API server in the order: kubeconfig flag, address flag, kubelet's kubeconfig, in-cluster variables.
///
/// # Errors
/// The first source that is there but wrong is an error: a later one is not silently taken in its place.
pub fn find(options: &Options) -> Result<Found, Error> {
    let mut found = if let Some(path) = &options.kubeconfig {
        explicit(options, path)?
    } else if let Some(server) = &options.server {
        address(options, Origin::Flag, server)?
    } else if let Some(path) = options
        .kubelet_kubeconfigs
        .iter()
        .find(|path| path.exists())
    {
        kubelet(options, path)?
    } else if let Some((host, port)) = &options.in_cluster {
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.clone()
        };
        address(
            options,
            Origin::InCluster,
            &format!("https://{host}:{port}"),
        )?
    } else {
        return Err(Error::NotFound {
            kubelet: options.kubelet_kubeconfigs.clone(),
        });
    };
    if let Ok(agent) = options.user_agent.parse() {
        found
            .config
            .headers
            .push((hyper::header::USER_AGENT, agent));
    }
    Ok(found)
}

fn read(path: &Path, edit: impl FnOnce(&mut Kubeconfig)) -> Result<Config, Error> {
    let error = |source| Error::Kubeconfig {
        path: path.into(),
        source,
    };
    let mut kubeconfig = Kubeconfig::read_from(path).map_err(error)?;
    edit(&mut kubeconfig);
    // The loading is async in kube for the sake of plugins that we do not use; it never waits.
    futures::executor::block_on(Config::from_custom_kubeconfig(
        kubeconfig,
        &KubeConfigOptions::default(),
    ))
    .map_err(error)
}

fn parse(origin: &Origin, value: &str) -> Result<hyper::Uri, Error> {
    let error = |source| Error::Address {
        origin: origin.clone(),
        value: value.into(),
        source,
    };
    let uri: hyper::Uri = value.parse().map_err(|e| error(Box::new(e)))?;
    match uri.scheme_str() {
        Some("https" | "http") => Ok(uri),
        _ => Err(error("no https:// or http:// in front".into())),
    }
}

fn explicit(options: &Options, path: &Path) -> Result<Found, Error> {
    let origin = Origin::Kubeconfig(path.into());
    let mut config = read(path, |_| ())?;
    if let Some(server) = &options.server {
        config.cluster_url = parse(&origin, server)?;
    }
    Ok(Found { origin, config })
}

fn address(options: &Options, origin: Origin, server: &str) -> Result<Found, Error> {
    let config = Config::new(parse(&origin, server)?);
    with_service_account(options, origin, config)
}

fn kubelet(options: &Options, path: &Path) -> Result<Found, Error> {
    let mut ca_file = None;
    let mut config = read(path, |kubeconfig| {
        // The kubelet's identity is not ours, and its key files are not mounted.
        kubeconfig.auth_infos.clear();
        for cluster in kubeconfig
            .clusters
            .iter_mut()
            .filter_map(|named| named.cluster.as_mut())
        {
            // A CA by path: the path is the host's. If it is not here, the ServiceAccount's ca.crt is the same CA.
            if cluster.certificate_authority_data.is_none() {
                ca_file = cluster
                    .certificate_authority
                    .take()
                    .map(PathBuf::from)
                    .filter(|file| file.exists());
            }
        }
    })?;
    config.root_cert_file = ca_file;
    with_service_account(options, Origin::Kubelet(path.into()), config)
}

/// Adds the ServiceAccount's token, and its CA where no other is known.
fn with_service_account(
    options: &Options,
    origin: Origin,
    mut config: Config,
) -> Result<Found, Error> {
    let token = options.service_account.join("token");
    let ca = options.service_account.join("ca.crt");
    if config.root_cert.is_none() && config.root_cert_file.is_none() && ca.exists() {
        config.root_cert_file = Some(ca);
    }
    // Plain http needs no identity: there it would be shown to everyone.
    if config.cluster_url.scheme_str() == Some("https") {
        std::fs::File::open(&token).map_err(|source| Error::NoIdentity {
            origin: origin.clone(),
            server: config.cluster_url.to_string(),
            token: token.clone(),
            source,
        })?;
        config.auth_info = AuthInfo {
            token_file: Some(token.display().to_string()),
            ..AuthInfo::default()
        };
    }
    Ok(Found { origin, config })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    struct Node {
        dir: tempfile::TempDir,
        options: Options,
    }

    impl Node {
        /// A node with a ServiceAccount, in-cluster variables, and a kubelet's kubeconfig path where nothing lies yet.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let options = Options {
                server: None,
                kubeconfig: None,
                kubelet_kubeconfigs: ["kubelet.conf", "k3s/kubelet.kubeconfig"]
                    .map(|name| dir.path().join(name))
                    .into(),
                service_account: dir.path().into(),
                in_cluster: Some(("10.96.0.1".into(), "443".into())),
                user_agent: "test/1".into(),
            };
            let node = Self { dir, options };
            node.write("token", "secret");
            node.write("ca.crt", "");
            node
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.dir.path().join(name);
            std::fs::File::create(&path)
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
            path
        }

        fn kubeconfig(&self, name: &str, server: &str, ca: &str) -> PathBuf {
            self.write(
                name,
                &format!(
                    "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
                     clusters: [{{name: k, cluster: {{server: '{server}', {ca}}}}}]\nusers: [{{name: u, user: {{token: theirs}}}}]\n"
                ),
            )
        }

        fn find(&self) -> Found {
            find(&self.options).unwrap()
        }
    }

    #[test]
    fn the_sources_are_taken_in_order() {
        let mut node = Node::new();
        let found = node.find();
        assert_eq!(found.origin, Origin::InCluster);
        assert_eq!(found.config.cluster_url, "https://10.96.0.1:443/");

        let kubelet = node.kubeconfig("kubelet.conf", "https://cp.example:6443", "");
        let found = node.find();
        assert_eq!(found.origin, Origin::Kubelet(kubelet));
        assert_eq!(found.config.cluster_url, "https://cp.example:6443/");

        node.options.server = Some("https://10.0.0.1:6443".into());
        let found = node.find();
        assert_eq!(found.origin, Origin::Flag);
        assert_eq!(found.config.cluster_url, "https://10.0.0.1:6443/");

        let own = node.kubeconfig("own.conf", "https://own.example", "");
        node.options.kubeconfig = Some(own.clone());
        let found = node.find();
        assert_eq!(found.origin, Origin::Kubeconfig(own));
        assert_eq!(
            found.config.cluster_url, "https://10.0.0.1:6443/",
            "the address flag overrides the file's"
        );
        assert!(
            found.config.auth_info.token.is_some(),
            "an explicit kubeconfig brings its own identity"
        );
    }

    #[test]
    fn a_kubelets_kubeconfig_is_found_where_k3s_has_it_unless_kubeadm_made_the_node() {
        let node = Node::new();
        std::fs::create_dir(node.dir.path().join("k3s")).unwrap();
        let k3s = node.kubeconfig("k3s/kubelet.kubeconfig", "https://127.0.0.1:6444", "");
        let found = node.find();
        assert_eq!(found.origin, Origin::Kubelet(k3s));
        assert_eq!(found.config.cluster_url, "https://127.0.0.1:6444/");

        let kubeadm = node.kubeconfig("kubelet.conf", "https://cp.example:6443", "");
        assert_eq!(node.find().origin, Origin::Kubelet(kubeadm));
    }

    #[test]
    fn from_the_kubelet_come_address_and_ca_but_not_the_identity() {
        let node = Node::new();
        node.kubeconfig(
            "kubelet.conf",
            "https://cp.example:6443",
            "certificate-authority: /nowhere/ca.crt",
        );
        let config = node.find().config;
        assert!(config.auth_info.token.is_none());
        assert_eq!(
            config.auth_info.token_file,
            Some(node.dir.path().join("token").display().to_string())
        );
        assert_eq!(
            config.root_cert_file,
            Some(node.dir.path().join("ca.crt")),
            "a CA that is not mounted here"
        );

        let ca = node.write("host-ca.crt", "");
        node.kubeconfig(
            "kubelet.conf",
            "https://cp.example:6443",
            &format!("certificate-authority: {}", ca.display()),
        );
        assert_eq!(node.find().config.root_cert_file, Some(ca));
    }

    #[test]
    fn an_ipv6_service_host_is_bracketed() {
        let mut node = Node::new();
        node.options.in_cluster = Some(("fd00::1".into(), "443".into()));
        assert_eq!(node.find().config.cluster_url, "https://[fd00::1]:443/");
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let mut node = Node::new();
        node.options.in_cluster = None;
        let error = find(&node.options).unwrap_err().to_string();
        assert!(
            error.contains("kubelet.conf") && error.contains("KUBERNETES_SERVICE_HOST"),
            "{error}"
        );

        node.options.server = Some("10.0.0.1:6443".into());
        let error = find(&node.options).unwrap_err().to_string();
        assert!(
            error.contains("10.0.0.1:6443") && error.contains("https://"),
            "{error}"
        );

        node.options.server = Some("https://10.0.0.1:6443".into());
        std::fs::remove_file(node.dir.path().join("token")).unwrap();
        let error = find(&node.options).unwrap_err().to_string();
        assert!(error.contains("token"), "{error}");
    }
}
