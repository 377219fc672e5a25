"""The SM targets that there are, and what is embedded for each.

PTX goes with the two baselines only: it carries them to GPUs that are not listed
here. Code of the others uses instructions that no other GPU has.
"""

GENCODE = {
    "sm_80": "arch=compute_80,code=[compute_80,sm_80]",
    "sm_89": "arch=compute_89,code=[compute_89,sm_89]",
    "sm_90a": "arch=compute_90a,code=sm_90a",
    "sm_100a": "arch=compute_100a,code=sm_100a",
    "sm_120a": "arch=compute_120a,code=sm_120a",
}

SM_TARGETS = GENCODE.keys()

def check_targets(where, targets):
    """Fails, naming the ones that exist, if one of the targets does not."""
    for target in targets:
        if target not in GENCODE:
            fail("%s: there is no SM target %s, only %s" % (where, target, ", ".join(SM_TARGETS)))
