"""What a notebook works with."""

import warnings

from transformers.utils import logging

# Bars of the libraries would stay in the output of a notebook; ours do not.
logging.disable_progress_bar()
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, without widgets
