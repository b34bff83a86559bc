//! The benchmark's harness: every way leads where it should, and every figure is there. Nothing about
//! times, which a loaded machine cannot tell.

use std::{
    fs,
    process::{Command, Stdio},
};

use lb_tests::{Lab, skip};
use serde_json::Value;

#[test]
fn a_quick_run_measures_every_way_at_every_size() {
    let name = "a_quick_run_measures_every_way_at_every_size";
    for (program, package) in [("nft", "nftables"), ("iptables-restore", "iptables")] {
        if Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            return skip(
                name,
                &format!("kube-proxy needs {program}; install {package}"),
            );
        }
    }
    let lab = Lab::new();
    let out = lab.dir().join("bench");

    let bench = Command::new(env!("CARGO_BIN_EXE_bench_connect"))
        .args(["--quick", "--json", "--out"])
        .arg(&out)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();

    assert!(bench.status.success(), "{}", bench.status);
    let report: Value = serde_json::from_slice(&bench.stdout).unwrap();
    let written = fs::read(out.join("connect.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), report);
    let sizes = report["sizes"].as_array().unwrap();
    assert_eq!(sizes.len(), 2, "{report}");
    for size in sizes {
        let ways = size["ways"].as_array().unwrap();
        let names: Vec<_> = ways
            .iter()
            .map(|way| way["way"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["direct", "miss", "nearhop", "nftables", "iptables"]);
        for way in ways {
            let ratio = |part: &str| way["ratio_p50"][part].as_f64().unwrap();
            assert!(way["p50_micros"].as_f64().unwrap() > 0.0, "{way}");
            assert!(ratio("low") <= ratio("value") && ratio("value") <= ratio("high"));
        }
        let programs = size["programs"].as_array().unwrap();
        let runs = |name: &str| {
            let program = programs.iter().find(|program| program["program"] == name);
            program.unwrap_or_else(|| panic!("no {name} in {size}"))["runs"].as_f64()
        };
        // One choice for each connect; several events of TCP, of which the first and the last count.
        assert_eq!(runs("nh_connect4"), Some(1.0));
        assert!(runs("nh_sock_ops") >= Some(2.0));
    }
    let plot = fs::read_to_string(out.join("connect.svg")).unwrap();
    assert!(plot.contains("by nearhop") && plot.ends_with("</svg>\n"));
}
