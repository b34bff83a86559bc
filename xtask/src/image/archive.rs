//! An image as an archive that every engine loads: the folder of an OCI image (image-spec,
//! `image-layout.md`), and beside it the `manifest.json` of `docker save`, which older engines look
//! for. The same image is the same bytes: times, owners and order are given, nothing is read from
//! the machine.

use std::io::Write;

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use jiff::Timestamp;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::{digest, processor::Processor};

/// What an image is made of: one layer, which holds these files and nothing else.
pub(crate) struct Image {
    /// As `docker.io/nearhop/lb-agent`.
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) processor: Processor,
    /// The time of everything in it.
    pub(crate) created: Timestamp,
    /// The first is what a container runs; its flags are the pod's.
    pub(crate) programs: Vec<Program>,
    pub(crate) labels: Value,
}

/// A program in the image's root.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

impl Program {
    fn path(&self) -> String {
        format!("/{}", self.name)
    }
}

/// An image, packed.
pub(crate) struct Archive {
    pub(crate) bytes: Vec<u8>,
    /// Of the manifest, by which registries and engines know an image.
    pub(crate) digest: String,
    /// What a node downloads.
    pub(crate) compressed: usize,
    /// What it unpacks.
    pub(crate) unpacked: usize,
}

const OCI: &str = "application/vnd.oci.image";

impl Image {
    pub(crate) fn pack(&self) -> Result<Archive> {
        let time = u64::try_from(self.created.as_second())?;
        let layer = self.layer(time)?;
        let compressed = Blob::new(format!("{OCI}.layer.v1.tar+gzip"), gzip(&layer)?);
        let config = Blob::of(
            format!("{OCI}.config.v1+json"),
            &self.config(&digest::sha256(&layer)),
        );
        let manifest = Blob::of(
            format!("{OCI}.manifest.v1+json"),
            &json!({
                "schemaVersion": 2,
                "mediaType": format!("{OCI}.manifest.v1+json"),
                "config": config.descriptor(),
                "layers": [compressed.descriptor()],
            }),
        );

        let mut tar = Tar::new(time);
        tar.folder("blobs/")?;
        tar.folder("blobs/sha256/")?;
        for blob in [&compressed, &config, &manifest] {
            tar.file(&blob.path(), 0o444, &blob.content)?;
        }
        tar.json("index.json", &self.index(&manifest))?;
        tar.json(
            "manifest.json",
            &json!([{
                "Config": config.path(),
                "RepoTags": [self.short_reference()],
                "Layers": [compressed.path()],
            }]),
        )?;
        tar.json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        Ok(Archive {
            bytes: tar.finish()?,
            digest: manifest.digest.clone(),
            compressed: compressed.content.len(),
            unpacked: layer.len(),
        })
    }

    /// As a pod names it.
    pub(crate) fn reference(&self) -> String {
        format!("{}:{}", self.name, self.version)
    }

    /// Docker leaves its own registry out.
    fn short_reference(&self) -> String {
        let reference = self.reference();
        match reference.strip_prefix("docker.io/") {
            Some(short) => short.to_owned(),
            None => reference,
        }
    }

    fn layer(&self, time: u64) -> Result<Vec<u8>> {
        let mut tar = Tar::new(time);
        for program in &self.programs {
            tar.file(&program.name, 0o555, &program.content)?;
        }
        tar.finish()
    }

    fn config(&self, diff_id: &str) -> Value {
        let created = self.created.to_string();
        json!({
            "architecture": self.processor.oci(),
            "os": "linux",
            "created": created,
            "config": {
                "Entrypoint": self.programs.iter().take(1).map(Program::path).collect::<Vec<_>>(),
                // `kubectl exec` finds the program by its name alone.
                "Env": ["PATH=/"],
                "WorkingDir": "/",
                "Labels": self.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "created_by": "cargo xtask image"}],
        })
    }

    fn index(&self, manifest: &Blob) -> Value {
        let mut descriptor = manifest.descriptor();
        descriptor["platform"] = json!({"architecture": self.processor.oci(), "os": "linux"});
        descriptor["annotations"] = json!({
            // By which containerd names what it imports.
            "io.containerd.image.name": self.reference(),
            "org.opencontainers.image.ref.name": self.version,
        });
        json!({
            "schemaVersion": 2,
            "mediaType": format!("{OCI}.index.v1+json"),
            "manifests": [descriptor],
        })
    }
}

/// Content that is found by its digest.
struct Blob {
    media_type: String,
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(media_type: String, content: Vec<u8>) -> Self {
        Self {
            media_type,
            digest: digest::sha256(&content),
            content,
        }
    }

    fn of(media_type: String, document: &Value) -> Self {
        Self::new(media_type, document.to_string().into_bytes())
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.content.len(),
        })
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }
}

/// A tar whose entries are root's and all of one time.
struct Tar {
    builder: Builder<Vec<u8>>,
    time: u64,
}

impl Tar {
    fn new(time: u64) -> Self {
        Self {
            builder: Builder::new(Vec::new()),
            time,
        }
    }

    fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, EntryType::Directory, 0o755, &[])
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(name, EntryType::Regular, mode, content)
    }

    fn json(&mut self, name: &str, document: &Value) -> Result<()> {
        self.file(name, 0o444, document.to_string().as_bytes())
    }

    fn entry(&mut self, name: &str, kind: EntryType, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.time);
        header.set_size(u64::try_from(content.len())?);
        self.builder.append_data(&mut header, name, content)?;
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.builder.into_inner()?)
    }
}

/// Without a name and a time of its own.
fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    gzip.write_all(content)?;
    Ok(gzip.finish()?)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use flate2::read::GzDecoder;

    use super::*;

    fn image() -> Image {
        Image {
            name: "docker.io/nearhop/lb-agent".into(),
            version: "1.2.3".into(),
            processor: Processor::Aarch64,
            created: Timestamp::from_second(1_700_000_000).unwrap(),
            programs: vec![Program {
                name: "lb-agent".into(),
                content: b"\x7fELF".repeat(1000),
            }],
            labels: json!({"org.opencontainers.image.title": "nearhop"}),
        }
    }

    /// The files of a tar, with what is written about each.
    fn files(tar: &[u8]) -> BTreeMap<String, (Header, Vec<u8>)> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().unwrap().map(Result::unwrap);
        let files = entries.filter(|entry| entry.header().entry_type().is_file());
        files
            .map(|mut entry| {
                let name = entry.path().unwrap().display().to_string();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (name, (entry.header().clone(), content))
            })
            .collect()
    }

    fn document(files: &BTreeMap<String, (Header, Vec<u8>)>, name: &str) -> Value {
        serde_json::from_slice(&files[name].1).unwrap()
    }

    /// What a descriptor names, whose size and digest must be as it says.
    fn followed<'a>(
        files: &'a BTreeMap<String, (Header, Vec<u8>)>,
        descriptor: &Value,
    ) -> &'a [u8] {
        let digest = descriptor["digest"].as_str().unwrap();
        let (_, content) = &files[&format!("blobs/{}", digest.replace(':', "/"))];
        assert_eq!(digest::sha256(content), digest);
        assert_eq!(descriptor["size"], content.len());
        content
    }

    #[test]
    fn the_same_image_is_the_same_bytes() {
        assert!(image().pack().unwrap().bytes == image().pack().unwrap().bytes);

        let later = Image {
            created: Timestamp::from_second(1_700_000_001).unwrap(),
            ..image()
        };
        assert!(image().pack().unwrap().bytes != later.pack().unwrap().bytes);
    }

    #[test]
    fn from_the_index_everything_is_found_by_its_digest() {
        let archive = image().pack().unwrap();
        let files = files(&archive.bytes);

        let manifest = &document(&files, "index.json")["manifests"][0];
        assert_eq!(manifest["digest"], archive.digest);
        assert_eq!(manifest["platform"]["architecture"], "arm64");
        let annotations = &manifest["annotations"];
        assert_eq!(
            annotations["io.containerd.image.name"],
            "docker.io/nearhop/lb-agent:1.2.3"
        );
        let manifest: Value = serde_json::from_slice(followed(&files, manifest)).unwrap();
        let config: Value = serde_json::from_slice(followed(&files, &manifest["config"])).unwrap();
        assert_eq!(config["architecture"], "arm64");
        assert_eq!(config["created"], "2023-11-14T22:13:20Z");
        assert_eq!(config["config"]["Entrypoint"], json!(["/lb-agent"]));

        let mut layer = Vec::new();
        let compressed = followed(&files, &manifest["layers"][0]);
        GzDecoder::new(compressed).read_to_end(&mut layer).unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"],
            json!([digest::sha256(&layer)])
        );
        assert_eq!(
            (archive.compressed, archive.unpacked),
            (compressed.len(), layer.len())
        );
    }

    #[test]
    fn docker_finds_the_same_by_its_own_manifest() {
        let archive = image().pack().unwrap();
        let files = files(&archive.bytes);

        let manifest = &document(&files, "manifest.json")[0];
        assert_eq!(manifest["RepoTags"], json!(["nearhop/lb-agent:1.2.3"]));
        let config = document(&files, manifest["Config"].as_str().unwrap());
        assert_eq!(config["os"], "linux");
        assert!(files.contains_key(manifest["Layers"][0].as_str().unwrap()));
    }

    #[test]
    fn the_layer_holds_the_program_and_nothing_else() {
        let layer = image().layer(1_700_000_000).unwrap();
        let files = files(&layer);

        assert_eq!(files.keys().collect::<Vec<_>>(), ["lb-agent"]);
        let (header, content) = &files["lb-agent"];
        assert_eq!(header.mode().unwrap(), 0o555);
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        assert_eq!(header.mtime().unwrap(), 1_700_000_000);
        assert_eq!(content, &b"\x7fELF".repeat(1000));
    }
}
