// The configuration of a production kernel, a constant of its compilation. config.py has the same struct and writes it
// into the source that is compiled.
#pragma once

enum class Kind {
    kDense,
    kContiguous,  // m_indices gives the expert of every row of A
    kMasked,      // every group has max_m rows of A, of which the first masked_m are valid
    kPsum,        // the rows of all groups lie in one A: a list says where each group ends, and the next one begins at
                  // the next multiple of `alignment`
};

enum class Share {
    kNothing,
    kA,  // the CTAs of a cluster compute tiles side by side, and multicast A
    kB,  // the CTAs of a cluster compute tiles below each other, and multicast B
    kK,  // split-K: the CTAs of a cluster compute one tile, each over its own range of K
};

struct Config {
    Kind kind;
    int n, k;                      // B is [n, k]
    int tile_m, tile_n;            // D is computed in tiles (tile_m, tile_n)
    int consumers_m, consumers_n;  // consumer warpgroups below each other and side by side; one or two in all
    int stages;                    // of the ring between the copy engine and the tensor cores
    int cluster;                   // CTAs per cluster
    Share share;                   // what they share
    int group_m;                   // rasterisation: clusters walk bands group_m units tall (scheduler.cuh)
    int group_n;                   // if not 0: bands group_n units wide, where there are many units
    int unroll;                    // K blocks in the body of the main loop
    int blocks_an_sm;              // CTAs per SM, one or two
    bool stream_b;                 // B is read once, so it should be evicted from L2 first
    int prefetch;                  // K blocks of its first tile of B that a CTA prefetches into L2 at its start
    int tail_m, tail_n;            // the tail's tile, for the rows that do not fill whole waves; 0: there is no tail
    int alignment;                 // contiguous and psum: the rows of a group begin at multiples of it
    bool sparse = false;           // masked and psum: made for many groups of which few have rows
};

// The configuration with the two tiles exchanged, for the tail; unchanged if there is no tail.
constexpr Config exchanged(Config c) {
    if (c.tail_m == 0) return c;
    const int tile_m = c.tile_m, tile_n = c.tile_n;
    c.tile_m = c.tail_m, c.tile_n = c.tail_n, c.tail_m = tile_m, c.tail_n = tile_n;
    return c;
}
