# What every policy gives: for each submodule that was checked, a trust vector and the codes
# of the reasons behind it. Values are named in ar4si/data.json, after AR4SI
# (draft-ietf-rats-ar4si §2.3); each rule earns the better ones, and falls to the worst.
package touchstone

outcome[name] := {"trust_vector": trust_vector(facts), "reasons": reasons(facts)} if {
	some name, facts in input.checked
}

trust_vector(facts) := platform_vector(facts) if facts.kind == "platform"

trust_vector(facts) := model_vector(facts) if facts.kind == "model"

trust_vector(facts) := {"hardware": hardware(facts)} if facts.kind == "gpu"

# A submodule of a kind we do not know says things that nobody here can weigh.
trust_vector(facts) := {"configuration": data.ar4si.configuration.forbidden} if facts.kind == "unknown"

# Schemes give reasons of their own; a policy adds what it alone knows.
reasons(facts) := sort(complaints(facts.runtime)) if {
	facts.kind == "platform"
	facts.runtime != null
} else := []
