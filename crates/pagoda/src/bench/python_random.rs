//! `random.seed(N)` and `random.randint(a, b)` of Python 3, so that a workload which others publish as a Python script has the
//! same lengths here. The generator is MT19937 (Matsumoto and Nishimura 1998).

const LEN: usize = 624;
const SHIFT: usize = 397;

/// Python's generator.
pub(crate) struct PythonRandom {
    state: [u32; LEN],
    next: usize,
}

impl PythonRandom {
    /// After `random.seed(seed)`.
    pub(crate) fn new(seed: u32) -> Self {
        let mut state = [0u32; LEN];
        state[0] = 19_650_218;
        for i in 1..LEN {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        // `init_by_array` with the one word of the seed: a round that adds it, and one that takes the place away.
        let mut i = 1;
        for round in 0..2 * LEN - 1 {
            let last = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = match round < LEN {
                true => (state[i] ^ last.wrapping_mul(1_664_525)).wrapping_add(seed),
                false => (state[i] ^ last.wrapping_mul(1_566_083_941)).wrapping_sub(i as u32),
            };
            i += 1;
            if i == LEN {
                state[0] = state[LEN - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        PythonRandom { state, next: LEN }
    }

    /// `random.randint(low, high)`: both ends included.
    pub(crate) fn randint(&mut self, low: u32, high: u32) -> u32 {
        let span = high - low + 1;
        let num_bits = u32::BITS - span.leading_zeros();
        loop {
            let bits = self.word() >> (u32::BITS - num_bits);
            if bits < span {
                return low + bits;
            }
        }
    }

    fn word(&mut self) -> u32 {
        if self.next == LEN {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for i in 0..LEN {
            let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % LEN] & 0x7fff_ffff);
            let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % LEN] ^ (mixed >> 1) ^ odd;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_pythons() {
        // >>> random.seed(0); [random.randint(100, 1024) for _ in range(5)]
        let mut random = PythonRandom::new(0);
        let draws: Vec<u32> = (0..5).map(|_| random.randint(100, 1024)).collect();
        assert_eq!(draws, [964, 494, 876, 1011, 530]);
        // >>> random.seed(7); [random.randint(0, 10000) for _ in range(2000)][-1]
        let mut random = PythonRandom::new(7);
        assert_eq!((0..2000).map(|_| random.randint(0, 10_000)).last(), Some(7_968));
    }
}
