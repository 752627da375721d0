package touchstone

outcome[name] := {"trust_vector": model_vector(facts), "reasons": []} if {
	some name, facts in input.checked
	facts.kind == "model"
}

# A walk that was never asked for nor offered says nothing: executables is then absent.
model_vector(facts) := {"file-system": file_system(facts)} if facts.walk == "none"

model_vector(facts) := {
	"file-system": file_system(facts),
	"executables": executables(facts),
} if {
	facts.walk != "none"
}

# file-system
#   published    2    the published files, within reach now, or lately while the verifier has no challenges
#   no_conclusion 0   the verifier has no challenges, and nothing shown before counts on
#   declared     -33  equal to the reference by the node's word alone, or by digests from an old cache
#   superseded   -34  equal to a reference value that another has replaced, within its grace period
#   unevaluable  1    no reference value to compare with, or none that is valid now
#   extra        32   files beyond the reference
#   other        96   other files, or a challenge wrong or left unanswered
file_system(facts) := data.ar4si.file_system.published if {
	facts.manifest == "equal"
	facts.read == "right"
} else := data.ar4si.file_system.published if {
	facts.manifest == "equal"
	facts.read == "unasked"
	facts.read_exhausted == "kept"
} else := data.ar4si.file_system.no_conclusion if {
	facts.manifest == "equal"
	facts.read == "unasked"
	facts.read_exhausted == "lost"
} else := data.ar4si.file_system.declared if {
	facts.manifest in {"equal", "aged"}
	unchallenged(facts)
} else := data.ar4si.file_system.superseded if {
	facts.manifest == "superseded"
	unchallenged(facts)
} else := data.ar4si.file_system.extra if {
	facts.manifest == "extra"
	unchallenged(facts)
} else := data.ar4si.file_system.unevaluable if {
	facts.manifest in {"unknown", "expired"}
} else := data.ar4si.file_system.other

# Nothing that was asked speaks against the manifest.
unchallenged(facts) if facts.read in {"right", "unasked", "superseded"}

# executables
#   walked   -2   the serving process walked the reference weights when called, in time
#   no_conclusion 0  the verifier has no walks, and none from before counts on
#   unshown  -33  the weights answered, and residence, timing or a device of its own is not shown;
#                 or the last call was missed
#   other    96   other weights, now or the last time, or calls missed repeatedly
executables(facts) := data.ar4si.executables.walked if {
	facts.walk == "called"
} else := data.ar4si.executables.no_conclusion if {
	facts.walk in {"announced", "stale"}
	facts.walk_exhausted == "lost"
} else := data.ar4si.executables.unshown if {
	facts.walk in {"announced", "from-file", "late", "shared", "stale", "superseded", "unanswered", "untimed"}
} else := data.ar4si.executables.other
