// The parameters of every kernel: one struct per op, passed by value. Mirrored field by field in
// crates/pagoda-backend-cuda/src/params.rs; a test compares names, sizes and offsets.
//
// Pointers are device addresses. A matrix is row-major; its shape stands behind it. `T` is the element type of the
// kernel's instantiation (bf16 or f16). Structs have no padding that is not named.
#pragma once

#include <stdint.h>

#ifndef __CUDACC__
struct alignas(8) float2 {
    float x, y;
};
#endif

// rms_norm.cu
struct RmsNormParams {
    const void* x;        // [num_rows, width] T
    const float* weight;  // [width]
    void* out;            // [num_rows, width] T
    uint32_t width;       // a multiple of 8
    float eps;
};

// add_rms_norm.cu
struct AddRmsNormParams {
    const void* x;        // [num_rows, width] T
    void* residual;       // [num_rows, width] T, read and written
    const float* weight;  // [width]
    void* out;            // [num_rows, width] T
    uint32_t width;       // a multiple of 8
    float eps;
};

// gated_activation.cu
struct GatedActivationParams {
    const void* gate_up;  // [num_rows, 2 * width] T: gate, then up
    void* out;            // [num_rows, width] T
    uint32_t num_rows;
    uint32_t width;       // a multiple of 8
    uint32_t activation;  // 0: SiLU, 1: GELU by tanh
    uint32_t reserved;
};

// gather_rows.cu
struct GatherRowsParams {
    const void* x;         // [_, width] T
    const uint32_t* rows;  // [num_rows]
    void* out;             // [num_rows, width] T
    uint32_t width;        // a multiple of 8
    uint32_t reserved;
};

// How the numbers of a packed weight matrix lie (weights.cuh).
enum WeightFormat : uint32_t {
    WEIGHT_DENSE = 0,  // T
    WEIGHT_Q8_0 = 1,   // codes: 32 x i8 per block; scales: f16 d
    WEIGHT_Q4_0 = 2,   // codes: 16 bytes per block; scales: f16 d
    WEIGHT_Q4_1 = 3,   // codes: 16 bytes per block; scales: f16 d, f16 m
};

// A packed [rows, cols] weight matrix. Block formats keep codes and scales apart, so that both are read in aligned pieces.
struct WeightView {
    const void* codes;   // [rows, cols] T, or [rows, cols / 32] blocks of codes
    const void* scales;  // [rows, cols / 32] scales; unused by WEIGHT_DENSE
    uint32_t rows;
    uint32_t cols;       // a multiple of 8, of 32 for block formats
    uint32_t format;     // WeightFormat
    uint32_t reserved;
};

// embed.cu
struct EmbedParams {
    WeightView table;              // [vocab, width]
    const uint32_t* input_tokens;  // [num_rows] an id, or LAST_SAMPLED | entry of last_samples
    const uint32_t* last_samples;  // ids chosen by the previous step
    void* out;                     // [num_rows, width] T
    float scale;
    uint32_t reserved;
};

// Set in `EmbedParams::input_tokens` where the id is still on the device only.
constexpr uint32_t LAST_SAMPLED = 0x80000000u;

// K and V of all layers: [layer][block][K, V][kv head][slot of the block][channel]. A head's slots of one block are one
// contiguous tile; a tile of e4m3 codes is followed by its scales [slot], a byte each.
struct KvView {
    void* data;           // T, or e4m3 codes
    uint32_t num_layers;
    uint32_t num_blocks;
    uint32_t num_kv_heads;
    uint32_t head_dim;
    uint32_t log2_block_size;
    uint32_t is_e4m3;
};

struct BlockCopyEntry {
    uint32_t source;
    uint32_t target;
    uint32_t num_slots;
};

// copy_blocks.cu
struct CopyBlocksParams {
    KvView kv;
    const BlockCopyEntry* copies;  // [num_copies]
};

// rope_store_kv.cu
struct RopeStoreKvParams {
    void* qkv;                  // [num_rows, (num_q_heads + 2 * kv heads) * head_dim] T: q heads, k heads, v heads
    const float* q_norm;        // [head_dim], or null
    const float* k_norm;        // [head_dim], or null
    const float* cos;           // [_, rotary_half] by position
    const float* sin;           // [_, rotary_half]
    const uint32_t* positions;  // [num_rows]
    const uint32_t* slots;      // [num_rows]
    KvView kv;
    uint32_t num_q_heads;
    uint32_t rotary_half;       // channel i turns with channel i + rotary_half
    uint32_t layer;
    float eps;
};

// One piece of attention work: for decode the split of a sequence's keys, for prefill the tile of its query rows.
struct AttentionWork {
    uint32_t sequence;
    uint32_t index;
};

// paged_attention_decode.cu, paged_attention_prefill.cu
struct PagedAttentionParams {
    const void* qkv;                     // [num_rows, (num_q_heads + 2 * kv heads) * head_dim] T
    void* out;                           // [num_rows, num_q_heads * head_dim] T
    KvView kv;
    const uint32_t* block_tables;        // one after the other
    const uint32_t* block_table_starts;  // [num_sequences + 1]
    const uint32_t* context_lens;        // [num_sequences] keys, this step's included
    const uint32_t* query_starts;        // [num_sequences + 1] first row of each sequence
    const AttentionWork* work;           // one per block in x; the splits of a sequence follow one another
    float* partial_out;                  // decode: [num work, num_q_heads, head_dim], not divided by the sum
    float2* partial_stats;               // decode: [num work, num_q_heads] (maximum, sum) in base 2
    uint32_t* arrivals;                  // decode: [num_sequences, blocks in y], 0 before and after a launch
    uint32_t num_q_heads;
    uint32_t layer;
    uint32_t window;                     // keys a query sees, itself included; 0: all
    float scale;                         // on the scores
    float softcap;                       // 0: none
    uint32_t reserved;
};

// paged_attention_prefill_wgmma.cu
struct alignas(128) WgmmaPrefillParams {
    uint64_t kv_map[16];             // CUtensorMap of the cache as a matrix [slots of all tiles, head_dim]
    PagedAttentionParams attention;  // `work` in tiles of WGMMA_PREFILL_ROWS
    uint64_t reserved[15];
};

// Keys of one split of a decode; also in crates/pagoda-backend-cuda/src/attention.rs.
constexpr uint32_t DECODE_SPLIT_KEYS = 256;
// Query heads of one block of a decode: the rows of one m16n8k16 product.
constexpr uint32_t DECODE_HEADS = 16;
// Query rows of one block of a prefill.
constexpr uint32_t PREFILL_ROWS = 64;
constexpr uint32_t WGMMA_PREFILL_ROWS = 128;

// skinny_gemm.cu, gemm.cu
struct LinearParams {
    WeightView weight;    // [rows, cols]
    const void* x;        // [num_rows, cols] T
    const float* bias;    // [rows], or null
    void* out;            // [num_rows, out_stride] T or f32, from the first column that the weight's rows fill
    uint32_t num_rows;
    uint32_t out_stride;
    uint32_t out_is_f32;  // logits are f32: bf16 would round a logit of 20 to steps of 1/8
    uint32_t reserved;
};

// dequantize.cu
struct DequantizeParams {
    WeightView weight;
    void* out;           // [num_rows, cols] T
    uint32_t first_row;  // of the weight
    uint32_t num_rows;
};

// What stands for "none" in a SampleRule.
constexpr uint32_t NONE = 0xFFFFFFFFu;

// How one row of logits becomes one token; `pagoda_backend::SampleRow` with its lists laid end to end.
struct SampleRule {
    uint64_t seed;
    uint32_t sample_index;
    uint32_t position;
    uint32_t row;            // of the logits
    uint32_t forced;         // a token, or NONE
    uint32_t num_top;        // likeliest tokens to report, or NONE: report nothing
    uint32_t top_k;
    float temperature;
    float top_p;
    float min_p;
    float repetition_penalty;
    float frequency_penalty;
    float presence_penalty;
    uint32_t first_count, num_counts;
    uint32_t first_bias, num_biases;
    uint32_t first_banned, num_banned;
    uint32_t first_mask_word, num_mask_words;  // NONE, 0: all tokens are allowed
};

struct SampleCount {
    uint32_t token;
    uint32_t num_output;
};

struct SampleBias {
    uint32_t token;
    float bias;
};

struct SampleReport {
    uint32_t token;
    uint32_t is_failed;  // no token can be chosen
    float logprob;
    uint32_t rank;
};

struct SampleTop {
    uint32_t token;
    float logprob;
};

// sample.cu
struct SampleParams {
    const float* logits;        // [_, stride]
    const SampleRule* rules;    // [num_samples]
    const SampleCount* counts;  // the rules' lists, one after the other
    const SampleBias* biases;
    const uint32_t* banned;
    const uint32_t* masks;
    float* ruled;               // [num_samples, vocab_size]
    SampleReport* reports;      // [num_samples]
    SampleTop* top;             // [num_samples, max_top]
    uint32_t* last_samples;     // [num_samples], for the next step's embed
    uint32_t stride;
    uint32_t vocab_size;
    uint32_t max_top;
    uint32_t reserved;
};
