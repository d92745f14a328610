"""What a notebook works with."""

import warnings

# tqdm's, in a kernel without widgets; transformers imports tqdm.
warnings.filterwarnings("ignore", message="IProgress not found")

from transformers.utils import logging  # noqa: E402

# Bars of the libraries would stay in the output of a notebook; ours do not.
logging.disable_progress_bar()
