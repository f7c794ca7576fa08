"""Perplexity of a base and of its adapters, against transformers with PEFT one item at a time, and lm-eval.

Every subject scores the same token ids and returns the summed negative log-likelihood of each item under each model.
Only scoring is timed: loading models and adapters is not.
"""

from typing import Any

from turns import Turns, subject
from workload import Options, Row

LM_EVAL_BATCH = 8


def finetrial(options: Options, turns: Turns) -> None:
    """Worker: base and adapters in one call."""
    import numpy as np
    import torch
    from workload import load_model

    from finetrial.evaluate.perplexity import perplexity
    from finetrial.model.peft_format import load_peft
    from finetrial.model.render import Rendered

    torch.set_num_threads(options.threads)
    turns.imports_done()
    model = load_model(options)
    adapters = [load_peft(options.adapter(n)) for n in range(options.adapters)]
    slices = [
        {f"{n}": Rendered(np.array(row.ids, dtype=np.int32), np.array(row.mask), 0, 0) for n, row in enumerate(rows)}
        for rows in options.slices()
    ]
    perplexity(model, adapters[:1], slices[0])  # warm-up
    for items in slices:
        turns.begin()
        with turns.span("all"):
            found = perplexity(model, adapters, items)
        turns.end(nll=found.nll_GK.tolist())
    turns.finish()


def peft(options: Options, turns: Turns) -> None:
    """Worker: one item at a time, adapter after adapter, logits only where a token is supervised."""
    import torch
    from peft import PeftModel
    from workload import load_model

    torch.set_num_threads(options.threads)
    turns.imports_done()
    model = load_model(options).eval()

    @torch.inference_mode()
    def score(scorer: Any, rows: list[Row]) -> list[float]:
        found = []
        for row in rows:
            ids = torch.tensor([row.ids], device=options.device)
            place = torch.tensor(row.mask, device=options.device).nonzero()[:, 0]
            logits = scorer(input_ids=ids, logits_to_keep=place - 1, use_cache=False).logits[0].float()
            found.append(float(torch.nn.functional.cross_entropy(logits, ids[0, place], reduction="sum")))
        return found

    slices = options.slices()
    score(model, slices[0][:4])  # warm-up
    for rows in slices:
        turns.begin()
        with turns.span("base"):
            nll = [score(model, rows)]
        for n in range(options.adapters):
            adapted = PeftModel.from_pretrained(model, options.adapter(n)).eval()
            with turns.span(f"adapter{n}"):
                nll.append(score(adapted, rows))
            model = adapted.unload()
        turns.end(nll=nll)
    turns.finish()


def lm_eval(options: Options, turns: Turns) -> None:
    """Worker: one HFLM per model, context and continuation as token ids."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel  # noqa: F401  # HFLM imports it with the first adapter; it belongs to the imports

    torch.set_num_threads(options.threads)
    turns.imports_done()

    def load(adapter: str | None) -> Any:
        make: Any = HFLM  # its registry decorator hides its signature
        return make(
            str(options.base), device=options.device, dtype=options.dtype, batch_size=LM_EVAL_BATCH, peft=adapter
        )

    def score(scorer: Any, rows: list[Row]) -> list[float]:
        requests = [(("", ""), row.ids[: row.mask.index(True)], row.ids[row.mask.index(True) :]) for row in rows]
        return [-logp for logp, _ in scorer._loglikelihood_tokens(requests, disable_tqdm=True)]

    slices = options.slices()
    score(load(None), slices[0][:8])  # warm-up
    for rows in slices:
        turns.begin()
        nll = []
        for n in range(-1, options.adapters):
            scorer = load(None if n < 0 else str(options.adapter(n)))
            with turns.span("base" if n < 0 else f"adapter{n}"):
                nll.append(score(scorer, rows))
        turns.end(nll=nll)
    turns.finish()


if __name__ == "__main__":
    subject({"finetrial": finetrial, "peft": peft, "lm-eval": lm_eval})
