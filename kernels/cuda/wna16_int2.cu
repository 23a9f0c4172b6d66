#define VQP_KIND 2
#include "wna16_instances.h"
