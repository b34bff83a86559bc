//! What the agent tells probes and Prometheus of itself. The loop writes it down as it goes and waits for
//! nobody; a thread of its own serves it, so that a loop that is stuck is seen to be, instead of being
//! not answered for.

pub mod health;
pub mod metrics;
mod process;
mod scrape;
pub mod server;

use std::time::{Instant, SystemTime};

use self::{
    health::{Health, Now},
    metrics::Metrics,
};
use crate::{config::Config, datapath::Pins, source::Batch};

/// Shared by the loop and those who ask.
pub struct Vitals {
    pub health: Health,
    pub metrics: Metrics,
    /// What is in force.
    configz: String,
}

impl Vitals {
    /// A change that waits for two sync periods makes the agent unhealthy.
    #[must_use]
    pub fn new(config: &Config, pins: &Pins) -> Self {
        Self {
            health: Health::new(2 * config.sync_period),
            metrics: Metrics::new(pins),
            configz: config.configz().to_string(),
        }
    }

    /// Something came from the source.
    pub fn heard(&self, batch: &Batch) {
        self.metrics.heard(batch);
    }

    /// What came is to be programmed.
    pub fn queued(&self) {
        let now = now();
        self.health.queued(now);
        self.metrics.queued(now.wall);
    }

    /// All that came is programmed, and said.
    pub fn done(&self) {
        self.health.done(now());
    }
}

fn now() -> Now {
    Now {
        clock: Instant::now(),
        wall: SystemTime::now(),
    }
}
