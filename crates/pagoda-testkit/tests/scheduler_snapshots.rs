//! What the scheduler plans, as text. `UPDATE_EXPECT=1` rewrites the snapshots; read the difference before committing it.

use expect_test::{Expect, expect, expect_file};
use pagoda_testkit::{render_timelines, run_scenario};

fn check(commands: &str, expected: Expect) {
    expected.assert_eq(&run_scenario(commands));
}

#[test]
fn the_timelines_of_the_documents_are_what_happens() {
    for (document, file) in [
        (include_str!("../../../docs/kv-cache.md"), expect_file!["../../../docs/kv-cache.md"]),
        (include_str!("../../../docs/scheduling.md"), expect_file!["../../../docs/scheduling.md"]),
    ] {
        assert!(document.contains("```timeline"));
        file.assert_eq(&render_timelines(document));
    }
}

#[test]
fn prefill_chunks_and_decode_share_one_budget() {
    check(
        "engine block_size=2 blocks=12 seqs=3 budget=4
         add A prompt=1,2 max=4
         step
         add B prompt=11,12,13,14,15 max=2
         add C prompt=21,22 max=2
         step 3",
        expect![[r#"
            > engine block_size=2 blocks=12 seqs=3 budget=4
            > add A prompt=1,2 max=4
            > step
              step 0: 2 tokens
                s0   0..2    of 2    b1              sample #0
                A scheduled, 0 cached
                A#0: 3
            > add B prompt=11,12,13,14,15 max=2
            > add C prompt=21,22 max=2
            > step 3
              step 1: 4 tokens
                s0   2..3    of 3    b1 b2           sample #0
                s1   0..3    of 5    b3 b4
                B scheduled, 0 cached
                A#0: 4
              step 2: 4 tokens
                s0   3..4    of 4    b1 b2           sample #0
                s1   3..5    of 5    b3 b4 b5        sample #0
                s2   0..1    of 2    b6
                C scheduled, 0 cached
                A#0: 5
                B#0: 16
              step 3: 3 tokens
                s0   4..5    of 5    b1 b2 b7        sample #0
                s1   5..6    of 6    b3 b4 b5        sample #0
                s2   1..2    of 2    b6              sample #0
                A#0: 6, length
                A ends
                B#0: 17, length
                B ends
                C#0: 23
        "#]],
    );
}

#[test]
fn admission_waits_for_the_whole_prompt_and_the_watermark() {
    check(
        "engine block_size=2 blocks=10 seqs=3 budget=8 len=12 watermark=2
         add A prompt=1,2,3,4,5,6 max=6
         step
         # 9 - 3 held = 6 blocks are there; B needs 5 and the watermark 2.
         add B prompt=11,12,13,14,15,16,17,18,19 max=1
         step
         abort A
         step",
        expect![[r#"
            > engine block_size=2 blocks=10 seqs=3 budget=8 len=12 watermark=2
            > add A prompt=1,2,3,4,5,6 max=6
            > step
              step 0: 6 tokens
                s0   0..6    of 6    b1 b2 b3        sample #0
                A scheduled, 0 cached
                A#0: 7
            # 9 - 3 held = 6 blocks are there; B needs 5 and the watermark 2.
            > add B prompt=11,12,13,14,15,16,17,18,19 max=1
            > step
              step 1: 1 token
                s0   6..7    of 7    b1 b2 b3 b4     sample #0
                A#0: 8
            > abort A
                A ends
            > step
              step 2: 8 tokens
                s1   0..8    of 9    b5 b6 b7 b8
                B scheduled, 0 cached
        "#]],
    );
}

#[test]
fn nobody_is_admitted_past_a_large_prompt_that_waits() {
    check(
        "engine block_size=2 blocks=8 seqs=3 budget=8 len=12
         add A prompt=1,2,3,4,5 max=2
         step
         add B prompt=11,12,13,14,15,16,17,18,19 max=1
         add C prompt=21 max=1
         step 2",
        expect![[r#"
            > engine block_size=2 blocks=8 seqs=3 budget=8 len=12
            > add A prompt=1,2,3,4,5 max=2
            > step
              step 0: 5 tokens
                s0   0..5    of 5    b1 b2 b3        sample #0
                A scheduled, 0 cached
                A#0: 6
            > add B prompt=11,12,13,14,15,16,17,18,19 max=1
            > add C prompt=21 max=1
            > step 2
              step 1: 1 token
                s0   5..6    of 6    b1 b2 b3        sample #0
                A#0: 7, length
                A ends
              step 2: 8 tokens
                s1   0..8    of 9    b4 b5 b6 b7
                B scheduled, 0 cached
        "#]],
    );
}

#[test]
fn lower_priority_numbers_are_admitted_first_until_waiting_makes_up_for_it() {
    check(
        "engine seqs=1 aging=2
         add A prompt=1 max=3
         add B prompt=11 max=1 priority=1
         step
         # B waits since step 0 and D arrives at step 1: priority 1 x 2 steps against 1 step of waiting less.
         add D prompt=31 max=1
         step 2
         # C arrives at step 3, too late to pass B.
         add C prompt=21 max=1
         step 3",
        expect![[r#"
            > engine seqs=1 aging=2
            > add A prompt=1 max=3
            > add B prompt=11 max=1 priority=1
            > step
              step 0: 1 token
                s0   0..1    of 1    b1              sample #0
                A scheduled, 0 cached
                A#0: 2
            # B waits since step 0 and D arrives at step 1: priority 1 x 2 steps against 1 step of waiting less.
            > add D prompt=31 max=1
            > step 2
              step 1: 1 token
                s0   1..2    of 2    b1              sample #0
                A#0: 3
              step 2: 1 token
                s0   2..3    of 3    b1 b2           sample #0
                A#0: 4, length
                A ends
            # C arrives at step 3, too late to pass B.
            > add C prompt=21 max=1
            > step 3
              step 3: 1 token
                s2   0..1    of 1    b3              sample #0
                D scheduled, 0 cached
                D#0: 32, length
                D ends
              step 4: 1 token
                s1   0..1    of 1    b4              sample #0
                B scheduled, 0 cached
                B#0: 12, length
                B ends
              step 5: 1 token
                s3   0..1    of 1    b5              sample #0
                C scheduled, 0 cached
                C#0: 22, length
                C ends
        "#]],
    );
}

#[test]
fn the_worst_ranked_is_preempted_and_comes_back_from_the_cache() {
    check(
        "engine block_size=2 blocks=7 seqs=2 budget=8 len=8
         # B comes first, but its priority is worse.
         add B prompt=11,12,13,14 max=4 priority=1
         add A prompt=1,2,3,4 max=4
         step 4
         pool
         step
         pool",
        expect![[r#"
            > engine block_size=2 blocks=7 seqs=2 budget=8 len=8
            # B comes first, but its priority is worse.
            > add B prompt=11,12,13,14 max=4 priority=1
            > add A prompt=1,2,3,4 max=4
            > step 4
              step 0: 8 tokens
                s1   0..4    of 4    b1 b2           sample #0
                s0   0..4    of 4    b3 b4           sample #0
                A scheduled, 0 cached
                B scheduled, 0 cached
                A#0: 5
                B#0: 15
              step 1: 2 tokens
                s1   4..5    of 5    b1 b2 b5        sample #0
                s0   4..5    of 5    b3 b4 b6        sample #0
                A#0: 6
                B#0: 16
              step 2: 2 tokens
                s1   5..6    of 6    b1 b2 b5        sample #0
                s0   5..6    of 6    b3 b4 b6        sample #0
                A#0: 7
                B#0: 17
              step 3: 1 token
                s1   6..7    of 7    b1 b2 b5 b6     sample #0
                A#0: 8, length
                A ends
            > pool
              free 0, cached 6, referenced 0
            > step
              step 4: 3 tokens
                s0   4..7    of 7    b3 b4 b6 b5     sample #0
                B#0: 18, length
                B ends
            > pool
              free 0, cached 6, referenced 0
        "#]],
    );
}

#[test]
fn who_was_preempted_too_often_comes_back_with_all_its_blocks_set_aside() {
    check(
        "engine block_size=2 blocks=8 seqs=2 budget=8 len=12 max_preemptions=1
         add A prompt=1,2,3,4 max=5
         add B prompt=11,12,13,14 max=8
         step 3
         # A's seventh token takes the last block. B finds none and nobody behind it: it gives way itself, for the last time.
         step
         pool
         # At its greatest length B needs 6 of the 7 blocks: it waits until A has ended.
         add C prompt=21,22,23 max=5
         step
         step 2
         # C finds 1 block beside those set aside for B, and needs 2.
         step",
        expect![[r#"
            > engine block_size=2 blocks=8 seqs=2 budget=8 len=12 max_preemptions=1
            > add A prompt=1,2,3,4 max=5
            > add B prompt=11,12,13,14 max=8
            > step 3
              step 0: 8 tokens
                s0   0..4    of 4    b1 b2           sample #0
                s1   0..4    of 4    b3 b4           sample #0
                A scheduled, 0 cached
                B scheduled, 0 cached
                A#0: 5
                B#0: 15
              step 1: 2 tokens
                s0   4..5    of 5    b1 b2 b5        sample #0
                s1   4..5    of 5    b3 b4 b6        sample #0
                A#0: 6
                B#0: 16
              step 2: 2 tokens
                s0   5..6    of 6    b1 b2 b5        sample #0
                s1   5..6    of 6    b3 b4 b6        sample #0
                A#0: 7
                B#0: 17
            # A's seventh token takes the last block. B finds none and nobody behind it: it gives way itself, for the last time.
            > step
              step 3: 1 token
                s0   6..7    of 7    b1 b2 b5 b7     sample #0
                A#0: 8
            > pool
              free 0, cached 3, referenced 4
            # At its greatest length B needs 6 of the 7 blocks: it waits until A has ended.
            > add C prompt=21,22,23 max=5
            > step
              step 4: 1 token
                s0   7..8    of 8    b1 b2 b5 b7     sample #0
                A#0: 9, length
                A ends
            > step 2
              step 5: 1 token
                s1   6..7    of 7    b3 b4 b6 b7     sample #0
                B#0: 18
              step 6: 1 token
                s1   7..8    of 8    b3 b4 b6 b7     sample #0
                B#0: 19
            # C finds 1 block beside those set aside for B, and needs 2.
            > step
              step 7: 1 token
                s1   8..9    of 9    b3 b4 b6 b7 b5  sample #0
                B#0: 20
        "#]],
    );
}

#[test]
fn all_samples_are_seated_together_and_share_the_prompt() {
    check(
        "engine block_size=2 blocks=12 seqs=3 budget=8
         add A prompt=1 max=2
         add B prompt=11,12,13 max=3 n=3
         step 2
         step 2
         finish B 1
         pool
         step 2",
        expect![[r#"
            > engine block_size=2 blocks=12 seqs=3 budget=8
            > add A prompt=1 max=2
            > add B prompt=11,12,13 max=3 n=3
            > step 2
              step 0: 1 token
                s0   0..1    of 1    b1              sample #0
                A scheduled, 0 cached
                A#0: 2
              step 1: 1 token
                s0   1..2    of 2    b1              sample #0
                A#0: 3, length
                A ends
            > step 2
              step 2: 3 tokens
                s1   0..3    of 3    b2 b3           sample #0, #1 for s2, #2 for s3
                B scheduled, 0 cached
                B#0: 14
                B#1: 24
                B#2: 34
              step 3: 3 tokens
                copy b3[..1] -> b4
                copy b3[..1] -> b5
                s1   3..4    of 4    b2 b4           sample #0
                s2   3..4    of 4    b2 b5           sample #1
                s3   3..4    of 4    b2 b3           sample #2
                B#0: 15
                B#1: 25
                B#2: 35
            > finish B 1
            > pool
              free 6, cached 2, referenced 3
            > step 2
              step 4: 2 tokens
                s1   4..5    of 5    b2 b4 b6        sample #0
                s3   4..5    of 5    b2 b3 b7        sample #2
                B#0: 16, length
                B#2: 36, length
                B ends
        "#]],
    );
}

#[test]
fn at_depth_two_the_next_step_is_planned_before_its_tokens_are_known() {
    check(
        "engine block_size=2 blocks=12 seqs=2 budget=8 depth=2
         add A prompt=1,2,3 max=3
         add B prompt=11,12 stop=14 max=9
         step 3
         # B has stopped; its row in the step that is in flight is wasted, its blocks come back when that ends.
         pool
         step 2
         pool",
        expect![[r#"
            > engine block_size=2 blocks=12 seqs=2 budget=8 depth=2
            > add A prompt=1,2,3 max=3
            > add B prompt=11,12 stop=14 max=9
            > step 3
              step 0: 5 tokens
                s0   0..3    of 3    b1 b2           sample #0
                s1   0..2    of 2    b3              sample #0
                A scheduled, 0 cached
                B scheduled, 0 cached
              step 1: 2 tokens
                s0   3..4    of 4    b1 b2           after @0  sample #0
                s1   2..3    of 3    b3 b4           after @1  sample #0
                A#0: 4
                B#0: 13
              step 2: 2 tokens
                s0   4..5    of 5    b1 b2 b5        after @0  sample #0
                s1   3..4    of 4    b3 b4           after @1  sample #0
                A#0: 5
                B#0: 14, stop
                B ends
            # B has stopped; its row in the step that is in flight is wasted, its blocks come back when that ends.
            > pool
              free 6, cached 0, referenced 5
            > step 2
                A#0: 6, length
                A ends
            > pool
              free 6, cached 5, referenced 0
        "#]],
    );
}

#[test]
fn at_depth_two_nobody_is_preempted_before_the_steps_in_flight_have_ended() {
    check(
        "engine block_size=2 blocks=7 seqs=2 budget=8 len=10 depth=2
         add A prompt=1,2,3,4 max=5
         add B prompt=11,12,13,14 max=4
         step 4
         # A found no block in step 3's plan, and both steps have ended. Now B gives way.
         step 4
         pool",
        expect![[r#"
            > engine block_size=2 blocks=7 seqs=2 budget=8 len=10 depth=2
            > add A prompt=1,2,3,4 max=5
            > add B prompt=11,12,13,14 max=4
            > step 4
              step 0: 8 tokens
                s0   0..4    of 4    b1 b2           sample #0
                s1   0..4    of 4    b3 b4           sample #0
                A scheduled, 0 cached
                B scheduled, 0 cached
              step 1: 2 tokens
                s0   4..5    of 5    b1 b2 b5        after @0  sample #0
                s1   4..5    of 5    b3 b4 b6        after @1  sample #0
                A#0: 5
                B#0: 15
              step 2: 2 tokens
                s0   5..6    of 6    b1 b2 b5        after @0  sample #0
                s1   5..6    of 6    b3 b4 b6        after @1  sample #0
                A#0: 6
                B#0: 16
                A#0: 7
                B#0: 17
            # A found no block in step 3's plan, and both steps have ended. Now B gives way.
            > step 4
              step 3: 1 token
                s0   6..7    of 7    b1 b2 b5 b6     sample #0
              step 4: 1 token
                s0   7..8    of 8    b1 b2 b5 b6     after @0  sample #0
                A#0: 8
                A#0: 9, length
                A ends
              step 5: 3 tokens
                s1   4..7    of 7    b3 b4 b6 b5     sample #0
            > pool
              free 0, cached 2, referenced 4
        "#]],
    );
}

#[test]
fn max_tokens_zero_computes_the_prompt_only() {
    check(
        "engine budget=4
         add A prompt=1,2,3,4,5,6 max=0 n=2
         step 2",
        expect![[r#"
            > engine budget=4
            > add A prompt=1,2,3,4,5,6 max=0 n=2
            > step 2
              step 0: 4 tokens
                s0   0..4    of 6    b1 b2
                A scheduled, 0 cached
              step 1: 2 tokens
                s0   4..6    of 6    b1 b2 b3
                A#0, length
                A#1, length
                A ends
        "#]],
    );
}

#[test]
fn prompt_logprobs_match_nothing_and_arrive_with_each_chunk() {
    check(
        "engine budget=4
         add A prompt=1,2,3,4,5,6 max=1
         step 2
         add B prompt=1,2,3,4,5,6 max=1 logprobs
         step 2
         add C prompt=1,2,3,4,5,6 max=1
         step",
        expect![[r#"
            > engine budget=4
            > add A prompt=1,2,3,4,5,6 max=1
            > step 2
              step 0: 4 tokens
                s0   0..4    of 6    b1 b2
                A scheduled, 0 cached
              step 1: 2 tokens
                s0   4..6    of 6    b1 b2 b3        sample #0
                A#0: 7, length
                A ends
            > add B prompt=1,2,3,4,5,6 max=1 logprobs
            > step 2
              step 2: 4 tokens
                s1   0..4    of 6    b4 b5           prompt logprobs 4
                B scheduled, 0 cached
                B prompt logprobs 4
              step 3: 2 tokens
                s1   4..6    of 6    b4 b5 b6        sample #0  prompt logprobs 1
                B prompt logprobs 1
                B#0: 7, length
                B ends
            > add C prompt=1,2,3,4,5,6 max=1
            > step
              step 4: 1 token
                copy b3[..1] -> b4
                s2   5..6    of 6    b1 b2 b4        sample #0
                C scheduled, 5 cached
                C#0: 7, length
                C ends
        "#]],
    );
}

#[test]
fn the_context_window_ends_a_sequence_like_max_tokens() {
    check(
        "engine len=4
         add A prompt=1,2 max=100
         step 3",
        expect![[r#"
            > engine len=4
            > add A prompt=1,2 max=100
            > step 3
              step 0: 2 tokens
                s0   0..2    of 2    b1              sample #0
                A scheduled, 0 cached
                A#0: 3
              step 1: 1 token
                s0   2..3    of 3    b1 b2           sample #0
                A#0: 4, length
                A ends
        "#]],
    );
}

#[test]
fn a_stop_token_cannot_be_chosen_before_min_tokens() {
    check(
        "engine
         add A prompt=1 max=5 stop=2,4 min=2
         step 3",
        expect![[r#"
            > engine
            > add A prompt=1 max=5 stop=2,4 min=2
            > step 3
              step 0: 1 token
                s0   0..1    of 1    b1              sample #0
                A scheduled, 0 cached
                A#0: 3
              step 1: 1 token
                s0   1..2    of 2    b1              sample #0
                A#0: 5
              step 2: 1 token
                s0   2..3    of 3    b1 b2           sample #0
                A#0: 6
        "#]],
    );
}
