// What is decided before a kernel is compiled. config.py has the same struct, and writes one of these into the source.
#pragma once

enum class Kind {
    kDense,
    kContiguous,  // every row of A has its expert: m_indices
    kMasked,      // every group has max_m rows of A, of which the first masked_m count
};

enum class Share {
    kNothing,
    kA,  // the blocks of a cluster make tiles side by side, and multicast A
    kB,  // ... below each other, and multicast B
    kK,  // ... the same tile, each over a part of K
};

struct Config {
    Kind kind;
    int n, k;
    int tile_m, tile_n;
    int consumers_m, consumers_n;  // warpgroups below each other and side by side; one or two in all
    int stages;
    int cluster;
    Share share;
    int group_m;         // units of work that run together span so many of them down
    int group_n;         // ... instead so many to the right, if it is not 0
    int unroll;          // blocks of K
    int blocks_an_sm;    // one or two blocks at a time on an SM
    bool stream_b;       // B is read once: let it leave L2 first
    int prefetch;        // blocks of K of B that a block asks L2 for before anything else
    int tail_m, tail_n;  // tiles of the rows that are left after whole waves of tiles; 0: the same
};

// Its two tiles exchanged; the same, if it has one.
constexpr Config exchanged(Config c) {
    if (c.tail_m == 0) return c;
    const int tile_m = c.tile_m, tile_n = c.tile_n;
    c.tile_m = c.tail_m, c.tile_n = c.tail_n, c.tail_m = tile_m, c.tail_n = tile_n;
    return c;
}
