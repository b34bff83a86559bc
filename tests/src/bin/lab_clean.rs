//! Removes labs whose process is gone: namespaces, cgroups with what runs in them, pins.

use std::process::ExitCode;

use lb_tests::sweep;

fn main() -> anyhow::Result<ExitCode> {
    let labs = sweep::labs()?;
    if labs.is_empty() {
        eprintln!("no lab is left on this machine");
    }
    let mut failed = false;
    for lab in labs {
        if lab.alive() {
            eprintln!("{}: process {} runs, left alone", lab.lab, lab.pid);
            continue;
        }
        eprintln!("{}: removing", lab.lab);
        for error in lab.remove() {
            eprintln!("{}: {error:#}", lab.lab);
            failed = true;
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
