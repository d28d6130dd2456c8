"""Time that `import fec_fast` adds to `import torch`."""
