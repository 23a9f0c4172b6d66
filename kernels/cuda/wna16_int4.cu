#define VQP_KIND 4
#include "wna16_instances.h"
