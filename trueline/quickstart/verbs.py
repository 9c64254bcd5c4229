"""Verbs that open a docstring's first line, in the base form that PEP 257 asks for.

Derived from the harvest (opening words that also occur in the third person, or that several packages open with), then read through by hand:
nouns and adjectives that never open a command were struck out.
"""

from __future__ import annotations

VERBS = frozenset(
    """
    abort accept access accumulate acquire act activate adapt add adjust advance aggregate alias align allocate
    allow alter analyse analyze animate annotate append apply approximate arrange ask assemble assert assign
    associate assume attach attempt augment authenticate authorize await back balance batch begin bind block
    bootstrap broadcast build bump cache calculate calibrate call cancel canonicalize capture cast catch center
    chain change check choose chop chunk clamp classify clean clear clip clone close coerce collapse collate collect
    color combine commit compact compare compile complete compose compress compute concatenate configure confirm
    connect consolidate construct consume contract control convert convolve copy correct correlate count cover crawl
    create crop cross cut deactivate debug decide declare decode decompose decompress decorate decrease decrement
    decrypt deduce deduplicate defer define degrade delay delegate delete demote deprecate dequantize deregister
    derive describe deserialize destroy detach detect determine diagonalize differentiate digest direct disable
    disallow disassemble discard disconnect discover dispatch display dispose dissolve distribute dive divide do
    document download downsample drain draw drive drop dump duplicate echo edit eliminate embed emit emulate enable
    encode encrypt end enforce enhance enqueue enrich ensure enter enumerate erase escape establish estimate
    evaluate evict examine exclude exec execute exit expand expect expire explain explode export expose express
    extend extract factor factorize fail feed fetch figure fill filter finalize find finish fire fit fix flag
    flatten flip flush fold follow force forget fork form format forward free freeze fuse gather generate get give
    go grab group guarantee guard guess halt handle hash help hide highlight hold hook identify ignore implement
    import impute include increase increment indent index indicate infer inform inherit initialise initialize
    initiate inject inline input insert inspect install instantiate instruct integrate interact intercept
    interpolate interpret intersect introspect invalidate invert investigate invoke isolate issue iterate join judge
    jump keep kill label launch lay learn leave let level lift limit link list listen load localize locate lock log
    look loop lower magnify maintain make manage mangle manipulate map mark mask match materialize maximize measure
    memoize merge migrate minimize mirror mix mock model modify monitor mount move multiply mute name narrow
    navigate negate negotiate normalise normalize notify number obey observe obtain offer offload offset omit open
    operate optimise optimize order output override overwrite pack pad paint parallelize parametrize parse partition
    pass paste patch pause peek perform permute persist pick pickle pin ping pipe place plan play plot point poll
    pool pop populate position post postprocess precompute predict prefetch prefix prepare prepend preprocess
    present preserve pretend prevent print probe process produce profile prohibit project promote prompt propagate
    propose protect prove provide proxy prune publish pull push put quantize query queue quit quote raise randomize
    rank rate reach read realize rearrange rebase rebuild recalculate receive recognize recompute reconnect
    reconstruct record recover recreate redirect redo reduce refer refine reflect reformat refresh refuse register
    reindex reinitialize reject relabel relate relax release reload relocate remap remember remind remove rename
    render reopen reorder reorganize repair repeat replace replay replicate report represent reproduce request
    require reraise rescale resample reschedule reserve reset reshape reshard resize resolve respond restart restore
    restrict result resume retrieve retry return reuse reveal reverse revert revise rewind rewrite roll rotate round
    route run sample sanitize satisfy save scale scan scatter schedule score scrape scroll seal search seed seek
    segment select send separate serialize serve set setup shard share shift shorten show shrink shuffle shut sign
    signal simplify simulate skip sleep slice slide smooth snap solve sort spawn specialize specify spin split
    spread square squash squeeze stack stage standardize start state stem step stop store stream stretch strip stub
    style submit subscribe subset substitute subtract suggest sum summarize supply support suppress surround suspend
    swap switch symmetrize synchronise synchronize sync synthesize tabulate tag take tear tell terminate test throw
    tile time toggle tokenize touch trace track train transcribe transfer transform translate transmit transpose
    traverse treat trigger trim truncate try tune turn unbind undo unescape unflatten unfold unify uninstall unload
    unlock unmap unmark unpack unpad unpickle unpin unquote unregister unset unshard unstack unsubscribe unwrap
    unzip update upgrade upload upsample use utilize validate vectorize verify visit visualise visualize wait walk
    warm warn watch weight widen wire withdraw wrap write yield zero zip zoom
    """.split()  # noqa: SIM905
)


def is_base_verb(word: str) -> bool:
    """Whether a word is a verb in its base form; a verb made with re-, un- or pre- counts when the rest is one."""
    word = word.lower()
    return word in VERBS or any(
        word.startswith(p) and len(word) > len(p) + 3 and word[len(p) :] in VERBS for p in ("re", "un", "pre", "de")
    )


def base_form(word: str) -> str:
    """Base form of a verb in the third person ("returns" -> "return"), or ""."""
    word = word.lower()
    candidates = [word[:-3] + "y"] if word.endswith("ies") else []
    candidates += [word[:-2]] if word.endswith("es") else []
    candidates += [word[:-1]] if word.endswith("s") and not word.endswith("ss") else []
    return next((c for c in candidates if is_base_verb(c)), "")
