//! How connections spread over backends: evenly, and not in a pattern.

use lb_tests::{
    Serve,
    protocol::Tally,
    scene::{self, Scene, TCP_PORT},
};

const CONNECTS: u32 = 3_000;

#[test]
fn three_thousand_connects_spread_evenly_and_in_no_fixed_order() {
    let scene = Scene::new(3);

    let first = scene.client.load(Serve::Tcp, scene::TCP, CONNECTS);
    let second = scene.client.load(Serve::Tcp, scene::TCP, CONNECTS);

    for tally in [&first, &second] {
        assert_eq!(tally.answered(), CONNECTS, "{:?}", tally.errors);
    }
    let deviations = [&first, &second].map(|tally| chi_square(&scene, tally));
    // Chi-square with 2 degrees of freedom: one even run in a thousand is above, and both are once in
    // a million.
    assert!(
        deviations.iter().any(|deviation| *deviation < 13.816),
        "{deviations:?}"
    );
    assert_ne!(first.order, second.order);
}

fn chi_square(scene: &Scene, tally: &Tally) -> f64 {
    let expected = f64::from(CONNECTS) / 3.0;
    let counts = scene
        .backends
        .iter()
        .map(|pod| f64::from(tally.of(pod.at(TCP_PORT))));
    counts
        .map(|count| (count - expected).powi(2) / expected)
        .sum()
}
