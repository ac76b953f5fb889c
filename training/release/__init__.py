"""From a finished training to a published model: `encoder` or `segmenter` writes its folder with `card` and `fingerprint`,
`publish` uploads it, `readme` writes the table of the README. `tiny`: random models for tests of other software.
"""
