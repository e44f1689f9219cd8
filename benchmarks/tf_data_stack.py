"""The input pipeline of big_vision and OpenVision, for comparison: tf.data."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.stack_work import AREA, BATCH, LENGTHS, RATIO, SHUFFLED

# What big_vision and OpenVision set: parallel calls of `map`, and threads.
_CALLS, _THREADS = 100, 48


def tf_data(
    folder: str, cores: int, batched_text: bool = False, jitter: bool = False
) -> Callable[[int], Iterator[Any]]:
    """tf.data as big_vision and OpenVision write it, in every doubt the cheaper of the two.

    From both: TFRecords of `tf.train.Example`, shuffled, one parallel `map`, threads of its own, uint8 pictures to the
    device. From big_vision: `decode_and_crop_jpeg` (OpenVision has TFDS decode the whole picture, 7 % more) and the
    cast without rounding. From OpenVision: antialiasing and the text, see `text_maker`. OpenVision also jitters colours
    here, on the CPU (`jitter`); clips_jax does that in the training step.

    Args:
      batched_text: the text is tokenized after batching, which neither does.
      jitter: with OpenVision's colour jitter and grey pictures.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf

    text, _ = text_maker(folder)
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in ("image", *LENGTHS)}

    def batches(size: int) -> Iterator[Any]:
        def crop(image: Any) -> Any:
            begin, extent, _ = tf.image.sample_distorted_bounding_box(
                tf.image.extract_jpeg_shape(image),
                tf.zeros([0, 0, 4], tf.float32),
                area_range=AREA,
                aspect_ratio_range=RATIO,
                min_object_covered=0,
                use_image_if_no_bounding_boxes=True,
            )
            window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
            pixels = tf.image.decode_and_crop_jpeg(image, window, channels=3)
            pixels = tf.image.resize(pixels, (size, size), method="bilinear", antialias=True)
            pixels = tf.cast(tf.clip_by_value(pixels, 0, 255), tf.uint8)
            return _jitter(pixels) if jitter else pixels

        def load(record: Any) -> Any:
            example = tf.io.parse_single_example(record, features)
            texts = {name: example[name] for name in LENGTHS}
            return {"image": crop(example["image"])} | (texts if batched_text else text(**texts))

        data = tf.data.TFRecordDataset(f"{folder}/photographs.tfrecord").repeat().shuffle(SHUFFLED)
        data = data.map(load, num_parallel_calls=_CALLS).batch(BATCH, drop_remainder=True)
        if batched_text:
            data = data.map(
                lambda batch: {"image": batch["image"]} | text(**{name: batch[name] for name in LENGTHS}),
                num_parallel_calls=cores,  # not more: so many batches are made ahead while other stacks are measured
            )
        options = tf.data.Options()
        options.threading.private_threadpool_size = _THREADS
        options.threading.max_intra_op_parallelism = 1
        return data.prefetch(2).with_options(options).as_numpy_iterator()

    return batches


def text_maker(folder: str) -> tuple[Callable[[Any, Any], dict[str, Any]], str]:
    """What OpenVision makes of AltText and recaption, each () or (B,), and by which tokenizer.

    Three BERT sequences: the AltText and a random sentence of the recaption, `[bos] pieces [eos] pads [CLS]` of 80, and
    the whole recaption as target of the captioner, 128, with the tokens shifted by one and a mask of what counts.

    Without tensorflow-text: lower-casing, splitting at white space and punctuation, and looking whole words up. That is
    the first half of BERT's work; it costs less, so that ratios against it are too low, never too high.
    """
    import tensorflow as tf

    file = f"{folder}/vocab.txt"
    vocabulary = open(file, encoding="utf-8").read().split("\n")
    bos, eos, cls = (vocabulary.index(name) for name in ("[bos]", "[eos]", "[CLS]"))
    try:
        import tensorflow_text as tf_text
    except ImportError:
        entries = tf.lookup.KeyValueTensorInitializer(vocabulary, tf.range(len(vocabulary), dtype=tf.int64))
        table = tf.lookup.StaticVocabularyTable(entries, 1)

        def pieces(texts: Any) -> Any:
            spaced = tf.strings.regex_replace(tf.strings.lower(texts), r"([[:punct:]])", r" \1 ")
            return tf.cast(table.lookup(tf.strings.split(spaced)), tf.int32)

        how = "whole words looked up by TensorFlow (tensorflow-text is missing)"
    else:
        bert = tf_text.BertTokenizer(file, token_out_type=tf.int32, lower_case=True)
        how = "tensorflow-text BertTokenizer"

        def pieces(texts: Any) -> Any:
            return bert.tokenize(texts).merge_dims(1, -1)

    def one_of(texts: Any) -> Any:
        """(1,): OpenVision takes one of the texts that a record may have."""
        texts = tf.reshape(texts, (-1,))
        return texts[tf.random.uniform([], 0, tf.maximum(tf.shape(texts)[0], 1), tf.int32)][None]

    def sequence(texts: Any, length: int) -> tuple[Any, Any]:
        """(B, length) each: `[bos] pieces [eos]`, padded or cut with EOS in the last place; and 1 where filled."""
        found = pieces(texts)
        column = tf.ones([tf.shape(texts)[0], 1], tf.int32)
        found = tf.concat([bos * column, found, eos * column], axis=1)
        padded = found.to_tensor(shape=[None, length])
        filled = tf.ones_like(found).to_tensor(shape=[None, length])
        return tf.concat([padded[:, :-1], tf.where(filled[:, -1:] == 1, eos, padded[:, -1:])], axis=1), filled

    def sentence(recaptions: Any) -> Any:
        """A random sentence of each; they end at every full stop and exclamation mark."""
        sentences = tf.strings.split(tf.strings.regex_replace(recaptions, r"[.!]+", "|"), "|")
        sentences = tf.ragged.boolean_mask(sentences, tf.strings.length(sentences) > 0)
        counts = sentences.row_lengths()
        drawn = tf.cast(tf.random.uniform(tf.shape(counts)) * tf.cast(counts, tf.float32), tf.int64)
        return tf.gather(sentences.flat_values, sentences.row_starts() + drawn)

    def text(alt_text: Any, recaption: Any) -> dict[str, Any]:
        single = not alt_text.shape.rank
        if single:
            alt_text, recaption = one_of(alt_text), one_of(recaption)
        column = tf.fill([tf.shape(alt_text)[0], 1], cls)
        target, filled = sequence(recaption, LENGTHS["recaption"])
        found = {
            "alt_text": tf.concat([sequence(alt_text, LENGTHS["alt_text"] - 1)[0], column], axis=1),
            "sentence": tf.concat([sequence(sentence(recaption), LENGTHS["alt_text"] - 1)[0], column], axis=1),
            "target": tf.pad(target[:, 1:], [[0, 0], [0, 1]]),
            "target_mask": tf.pad(filled[:, 1:], [[0, 0], [0, 1]]),
        }
        return {name: value[0] for name, value in found.items()} if single else found

    return text, how


def _jitter(pixels: Any) -> Any:
    """Brightness, contrast, saturation and hue in random order for 80 % of the pictures; 20 % grey. uint8."""
    import tensorflow as tf

    def colours(image: Any) -> Any:
        steps = [
            lambda: image * tf.random.uniform([], 0.68, 1.32),
            lambda: tf.image.random_contrast(image, 0.68, 1.32),
            lambda: tf.image.random_saturation(image, 0.68, 1.32),
            lambda: tf.image.random_hue(image, 0.08),
        ]
        order = tf.random.shuffle(tf.range(len(steps)))
        for place in range(len(steps)):
            image = tf.clip_by_value(tf.switch_case(order[place], steps), 0, 1)
        return image

    image = tf.cast(pixels, tf.float32) / 255
    image = tf.cond(tf.random.uniform([]) < 0.8, lambda: colours(image), lambda: image)
    image = tf.cond(
        tf.random.uniform([]) < 0.2, lambda: tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3]), lambda: image
    )
    return tf.cast(tf.clip_by_value(image * 255, 0, 255), tf.uint8)
