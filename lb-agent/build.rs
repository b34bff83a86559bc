//! Finds the kernel object that `cargo xtask build` made; `datapath/load.rs` embeds it. A build script
//! does not make it itself, because that needs another target, and a linker it must not install.

use std::{
    env,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo::rerun-if-env-changed=NEARHOP_BPF_OBJECT");
    let object = env::var_os("NEARHOP_BPF_OBJECT").map_or_else(beside_the_workspace, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env=NEARHOP_BPF_OBJECT={}", object.display()),
        Err(error) => println!(
            "cargo::error=the kernel object {} cannot be embedded: {error}; run `cargo xtask build`, \
             or name another object in NEARHOP_BPF_OBJECT",
            object.display()
        ),
    }
}

fn beside_the_workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lb-ebpf.o")
}
