#define VQP_KIND 7
#include "wna16_instances.h"
