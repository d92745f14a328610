"""What a notebook works with."""

import warnings

# tqdm's, in a kernel without widgets: it would stand in the first cell of every notebook
warnings.filterwarnings("ignore", message="IProgress not found")
