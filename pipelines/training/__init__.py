"""Training runs. Nothing is imported here, so that settings are refused before anything heavy is imported.

- ``settings``, ``durations``: the typed schema of a training config, read and checked;
- ``datasets``, ``image_batches``, ``text_batches``: what a run reads; ``tasks``, ``networks``, ``hub_models``:
  what it trains, and ``metrics``: by what it is tested;
  ``optimizers``, ``lars``: what it trains with, the same whatever runs the loop;
- ``composer_host``, ``loop_host``: what runs the loop, one of which a run imports; ``whole_epochs`` and
  ``checkpoints`` are the latter's;
- ``train``, ``results``, ``compare``: one run, what it did, and several runs in one table; ``metrics_record`` and
  ``run_config``: what its folder tells of it; ``trained_on``: which data;
- ``score_settings``, ``score``, ``score_results``: a scoring run, what is asked of it and what it leaves;
  ``surrogates`` train what scores, ``scoring_pass`` and ``samples_by_id`` look at the samples, ``logit_layer`` at what
  enters the output layer, ``scored_columns`` keep what was seen; ``reference`` is the loss of models that have not seen
  a sample.
"""
