// The emulator's core: one Hopper SM. It is compiled once; a kernel's library contains the kernel and calls it.
#include "cluster_memory.hpp"
#include "cp_async.hpp"
#include "fragments.hpp"
#include "grid.hpp"
#include "hooks.hpp"
#include "instructions.hpp"
#include "mbarrier.hpp"
#include "plain.hpp"
