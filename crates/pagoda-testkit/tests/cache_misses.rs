//! Why a prompt was not found in the cache, held against a record of everything that was ever computed.

use expect_test::expect;
use pagoda_engine::{
    BlockTable, CacheMiss, CacheSalt, Disposal, HashedTokens, KvCacheManager, PrefixReport, TokenId,
};
use pagoda_testkit::{Random, run_scenario};

const BLOCK_SIZE: usize = 2;

#[test]
fn every_reason_in_one_conversation() {
    expect![[r#"
        > engine block_size=2 blocks=8 seqs=1 len=12 misses=1
        > add A prompt=1,2,3,4,5 max=1
        > step
          step 0: 5 tokens
            s0   0..5    of 5    b1 b2 b3        sample #0
            A scheduled, 0 cached, first use
            A#0: 6, length
            A ends
        # The same again, then more of the same.
        > add B prompt=1,2,3,4,5 max=1
        > step
          step 1: 1 token
            s1   4..5    of 5    b1 b2 b4        sample #0
            B scheduled, 4 cached, complete
            B#0: 6, length
            B ends
        > add C prompt=1,2,3,4,5,6,7 max=1
        > step
          step 2: 2 tokens
            copy b3[..1] -> b4
            s2   5..7    of 7    b1 b2 b4 b5     sample #0
            C scheduled, 5 cached, first use
            C#0: 8, length
            C ends
        # An edit at position 3.
        > add D prompt=1,2,3,9,5,6,7 max=1
        > step
          step 3: 4 tokens
            copy b2[..1] -> b6
            s3   3..7    of 7    b1 b6 b7 b3     sample #0
            D scheduled, 3 cached, diverged at 3
            D#0: 8, length
            D ends
        # Another salt of the same tenant, and another tenant.
        > add E prompt=1,2,3,4 max=1 salt=x
        > step
          step 4: 4 tokens
            s4   0..4    of 4    b5 b4           sample #0
            E scheduled, 0 cached, 3 under another salt
            E#0: 5, length
            E ends
        > add F prompt=1,2,3,4 max=1 tenant=7
        > step
          step 5: 4 tokens
            s5   0..4    of 4    b2 b3           sample #0
            F scheduled, 0 cached, first use
            F#0: 5, length
            F ends
        # Something large comes in between; then the first conversation again, and its edit.
        > add G prompt=21,22,23,24,25,26,27,28,29 max=1
        > step 2
          step 6: 8 tokens
            s6   0..8    of 9    b7 b6 b1 b4
            G scheduled, 0 cached, first use
          step 7: 1 token
            s6   8..9    of 9    b7 b6 b1 b4 b5  sample #0
            G#0: 30, length
            G ends
        > add H prompt=1,2,3,4,5,6,7 max=1
        > step
          step 8: 7 tokens
            s7   0..7    of 7    b3 b2 b5 b4     sample #0
            H scheduled, 0 cached, evicted up to 6
            H#0: 8, length
            H ends
        > add I prompt=1,2,3,9,8 max=1 logprobs
        > step
          step 9: 5 tokens
            s8   0..5    of 5    b1 b6 b7        sample #0  prompt logprobs 4
            I scheduled, 0 cached, not asked
            I prompt logprobs 4
            I#0: 9, length
            I ends
    "#]]
    .assert_eq(&run_scenario(
        "engine block_size=2 blocks=8 seqs=1 len=12 misses=1
         add A prompt=1,2,3,4,5 max=1
         step
         # The same again, then more of the same.
         add B prompt=1,2,3,4,5 max=1
         step
         add C prompt=1,2,3,4,5,6,7 max=1
         step
         # An edit at position 3.
         add D prompt=1,2,3,9,5,6,7 max=1
         step
         # Another salt of the same tenant, and another tenant.
         add E prompt=1,2,3,4 max=1 salt=x
         step
         add F prompt=1,2,3,4 max=1 tenant=7
         step
         # Something large comes in between; then the first conversation again, and its edit.
         add G prompt=21,22,23,24,25,26,27,28,29 max=1
         step 2
         add H prompt=1,2,3,4,5,6,7 max=1
         step
         add I prompt=1,2,3,9,8 max=1 logprobs
         step",
    ));
}

/// Everything that was ever computed under one salt.
struct Record {
    salt: CacheSalt,
    sequences: Vec<Vec<TokenId>>,
}

impl Record {
    /// How many leading tokens were ever computed, and whether anything computed goes on otherwise there.
    fn known(&self, wanted: &[TokenId]) -> (usize, bool) {
        let common = |known: &Vec<TokenId>| known.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        let longest = self.sequences.iter().map(common).max().unwrap_or(0);
        let parts = self.sequences.iter().any(|known| common(known) == longest && known.len() > longest);
        (longest, parts)
    }
}

struct Machine {
    kv: KvCacheManager,
    records: Vec<Record>,
    random: Random,
}

impl Machine {
    fn new(num_blocks: usize, seed: u64) -> Self {
        let salt = |tenant, salt: &[u8]| CacheSalt { tenant, salt: salt.to_vec() };
        let salts = [salt(0, b""), salt(0, b"a"), salt(1, b""), salt(1, b"a")];
        Machine {
            kv: KvCacheManager::new(num_blocks, BLOCK_SIZE, true),
            records: salts.map(|salt| Record { salt, sequences: Vec::new() }).into(),
            random: Random::new(seed),
        }
    }

    /// A random prompt under a random salt, computed to its end; the report on it.
    fn run_one(&mut self) -> (usize, Vec<TokenId>, PrefixReport) {
        let salt = self.random.below(self.records.len());
        let tokens: Vec<TokenId> =
            (0..1 + self.random.below(9)).map(|_| self.random.below(2) as u32).collect();
        let hashed = HashedTokens::new(tokens.clone(), &self.records[salt].salt, BLOCK_SIZE);
        let found = self.kv.match_prefix(&hashed, tokens.len() - 1);
        let report = self.kv.report(&hashed, &found, tokens.len() - 1);
        assert_eq!(self.kv.match_prefix(&hashed, tokens.len() - 1), found, "a report changes no match");
        let mut table = BlockTable::default();
        self.kv.allocate(&mut table, &found, tokens.len()).expect("nothing else runs");
        let mut copies = Vec::new();
        self.kv.launch_step(0, &mut copies);
        self.kv.end_step(0);
        self.kv.commit(&mut table, &hashed, tokens.len());
        self.kv.free(&mut table, &hashed, tokens.len(), Disposal::Reusable);
        self.kv.check_integrity(std::iter::empty()).unwrap_or_else(|error| panic!("{error}"));
        (salt, tokens, report)
    }
}

/// Checks one report against the records as they were before it.
fn check(records: &[Record], salt: usize, tokens: &[TokenId], report: PrefixReport, forgets: bool) {
    let wanted = &tokens[..tokens.len() - 1];
    let (num_known, parts) = records[salt].known(wanted);
    let claimed = report.num_known_tokens as usize;
    let cached = report.num_cached_tokens as usize;
    assert!(cached <= claimed && claimed <= num_known, "{report:?}, but {num_known} were ever computed");
    if !forgets {
        assert_eq!(claimed, num_known, "{report:?}");
    }
    match report.miss {
        CacheMiss::Nothing => assert_eq!(cached, wanted.len()),
        CacheMiss::NotAsked => panic!("it was asked"),
        CacheMiss::Evicted => assert!(cached < claimed),
        CacheMiss::FirstUse => assert!(cached == claimed && (forgets || claimed == 0 || !parts)),
        CacheMiss::Diverged => assert!(cached == claimed && claimed > 0 && (forgets || parts)),
    }
    let num_elsewhere = report.num_tokens_under_other_salt as usize;
    if num_elsewhere > 0 {
        let tenant = records[salt].salt.tenant;
        let others = records.iter().enumerate();
        let others = others.filter(|(other, record)| *other != salt && record.salt.tenant == tenant);
        let most = others.map(|(_, record)| record.known(wanted).0).max();
        assert!(cached == claimed && claimed < num_elsewhere && Some(num_elsewhere) <= most, "{report:?}");
    }
}

fn run(num_blocks: usize, num_prompts: usize, forgets: bool) -> [u32; 5] {
    let mut counts = [0; 5];
    for seed in 0..200 {
        let mut machine = Machine::new(num_blocks, seed);
        for _ in 0..num_prompts {
            let (salt, tokens, report) = machine.run_one();
            check(&machine.records, salt, &tokens, report, forgets);
            machine.records[salt].sequences.push(tokens);
            let reason = match report.miss {
                CacheMiss::Nothing | CacheMiss::NotAsked => 0,
                CacheMiss::FirstUse => 1,
                CacheMiss::Evicted => 2,
                CacheMiss::Diverged => 3,
            };
            counts[reason] += 1;
            counts[4] += u32::from(report.num_tokens_under_other_salt > 0);
        }
    }
    counts
}

#[test]
fn nothing_is_claimed_that_was_not_computed_however_much_is_forgotten() {
    let counts = run(8, 120, true);
    assert!(counts.iter().all(|&count| count > 100), "{counts:?}");
}

#[test]
fn what_is_known_is_exact_while_the_ghosts_have_room() {
    // 20 prompts of at most 5 blocks cannot evict more blocks than there are ghosts.
    let counts = run(64, 20, false);
    assert!(counts[1] > 100 && counts[3] > 100, "{counts:?}");
}
