"""What every pipeline of `stacks` is given to do."""

BATCH = 64
LENGTHS = {"alt_text": 80, "recaption": 128}
AREA, RATIO = (0.4, 1.0), (0.75, 1.3333)  # of the crop: shares of the picture's area, width / height
# Records that tf.data and webdataset shuffle among: undecoded, so more would only take memory.
SHUFFLED = 256
