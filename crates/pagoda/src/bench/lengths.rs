//! How long prompts and outputs are: fixed, uniform or log-normal, drawn from a seeded generator.

use std::str::FromStr;

/// A distribution of token counts. Every draw is at least 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Lengths {
    /// Always the same.
    Fixed(usize),
    /// Equally likely, both ends included.
    Uniform(usize, usize),
    /// Few long ones among many short ones, as in chat logs: the mean, and the sigma of the logarithm.
    LogNormal(f64, f64),
}

/// Draws are cut here, so that one outlier cannot outgrow every context window.
const LONGEST: f64 = 1e6;
/// What fits the public chat logs (ShareGPT) roughly.
const DEFAULT_SIGMA: f64 = 1.0;

impl Lengths {
    /// One length.
    pub(crate) fn draw(&self, random: &mut Random) -> usize {
        match *self {
            Lengths::Fixed(len) => len,
            Lengths::Uniform(low, high) => low + (random.unit() * (high - low + 1) as f64) as usize,
            Lengths::LogNormal(mean, sigma) => {
                // The mean of exp(N(mu, sigma)) is exp(mu + sigma^2 / 2).
                let mu = mean.ln() - sigma * sigma / 2.0;
                (mu + sigma * random.normal()).exp().round().clamp(1.0, LONGEST) as usize
            }
        }
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?} is none of N, uniform:LOW-HIGH, lognormal:MEAN[,SIGMA]");
        let lengths = if let Some(range) = text.strip_prefix("uniform:") {
            let (low, high) = range.split_once('-').ok_or_else(usage)?;
            let parse = |text: &str| text.parse::<usize>().map_err(|_| usage());
            Lengths::Uniform(parse(low)?, parse(high)?)
        } else if let Some(moments) = text.strip_prefix("lognormal:") {
            let (mean, sigma) = moments.split_once(',').unwrap_or((moments, ""));
            let sigma = if sigma.is_empty() { Ok(DEFAULT_SIGMA) } else { sigma.parse() };
            Lengths::LogNormal(mean.parse().map_err(|_| usage())?, sigma.map_err(|_| usage())?)
        } else {
            Lengths::Fixed(text.parse().map_err(|_| usage())?)
        };
        let is_valid = match lengths {
            Lengths::Fixed(len) => len > 0,
            Lengths::Uniform(low, high) => 0 < low && low <= high,
            Lengths::LogNormal(mean, sigma) => (1.0..LONGEST).contains(&mean) && (0.0..10.0).contains(&sigma),
        };
        if is_valid { Ok(lengths) } else { Err(usage()) }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, good enough to draw loads.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The same seed gives the same load.
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Waiting time of a Poisson process of `rate` a second, in seconds.
    pub(crate) fn exponential(&mut self, rate: f64) -> f64 {
        -(1.0 - self.unit()).ln() / rate
    }

    /// Standard normal (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_nonsense_is_refused() {
        assert_eq!("128".parse(), Ok(Lengths::Fixed(128)));
        assert_eq!("uniform:5-9".parse(), Ok(Lengths::Uniform(5, 9)));
        assert_eq!("lognormal:202,0.5".parse(), Ok(Lengths::LogNormal(202.0, 0.5)));
        for bad in ["", "0", "-3", "uniform:9-5", "uniform:0-5", "lognormal:", "lognormal:NaN", "normal:3"] {
            assert!(bad.parse::<Lengths>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn draws_have_the_mean_that_was_asked_for() {
        for (text, mean) in [("lognormal:202,0.8", 202.0), ("uniform:10-30", 20.0), ("7", 7.0)] {
            let lengths: Lengths = text.parse().unwrap();
            let mut random = Random::new(1);
            let sum: usize = (0..50_000).map(|_| lengths.draw(&mut random)).sum();
            let measured = sum as f64 / 50_000.0;
            assert!((measured / mean - 1.0).abs() < 0.03, "{text}: {measured}");
        }
    }

    #[test]
    fn arrivals_have_the_rate_that_was_asked_for() {
        let mut random = Random::new(2);
        let mean = (0..50_000).map(|_| random.exponential(4.0)).sum::<f64>() / 50_000.0;
        assert!((mean * 4.0 - 1.0).abs() < 0.03, "{mean}");
    }
}
