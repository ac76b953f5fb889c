"""From a finished training to a published model: `encoder`, `segmenter`, their cards, the feature
fingerprint, `publish`.
"""
