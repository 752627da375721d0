package touchstone

# A walk that was never asked for nor offered says nothing: executables is then absent.
model_vector(facts) := {"file-system": file_system(facts)} if facts.walk == "none"

model_vector(facts) := {
	"file-system": file_system(facts),
	"executables": executables(facts),
} if {
	facts.walk != "none"
}

# file-system
#   2    the published files, within reach now
#   -33  equal to the reference by the node's word alone, or by digests from an old cache
#   1    no reference value to compare with
#   32   files beyond the reference
#   96   other files, or a challenge wrong or left unanswered
default file_system(_) := 96

file_system(facts) := 2 if {
	facts.manifest == "equal"
	facts.read == "right"
}

file_system(facts) := -33 if {
	facts.manifest == "equal"
	facts.read == "unasked"
}

file_system(facts) := -33 if {
	facts.manifest == "aged"
	facts.read in {"right", "unasked"}
}

file_system(facts) := 32 if {
	facts.manifest == "extra"
	facts.read in {"right", "unasked"}
}

file_system(facts) := 1 if facts.manifest == "unknown"

# executables
#   -2   the serving process walked the reference weights when called, in time
#   -33  the weights answered, and residence, timing or a device of its own is not shown
#   96   other weights, now or the last time, or calls missed repeatedly
default executables(_) := 96

executables(facts) := -2 if facts.walk == "called"

executables(facts) := -33 if facts.walk in {"announced", "from-file", "late", "shared", "stale", "untimed"}
