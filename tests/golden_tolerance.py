"""How near images come to the golden vectors."""

import PIL

# Pillow before 13 resizes one of the golden pictures one grey level differently in places.
EXACT = int(PIL.__version__.partition(".")[0]) >= 13
IMAGE_TOLERANCE = 1e-5 if EXACT else 4e-3
LONG_TOLERANCE = 1e-5 if EXACT else 2e-2  # of vectors before they are normalised, which are eight times as long
