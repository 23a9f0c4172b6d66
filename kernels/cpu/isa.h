#pragma once

namespace vqp {

// The best level whose instructions this CPU has and whose registers this operating system saves.
int max_level();

// The level in use unless another is asked for: the best one that has run on hardware, so not AMX.
int default_level();

// Whether the operating system lets this process use the tile registers; requested once, for all threads.
bool amx_permitted();

}  // namespace vqp
