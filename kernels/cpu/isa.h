#pragma once

namespace vqp {

// The best level whose instructions this CPU has and this operating system saves.
int max_level();

}  // namespace vqp
