# What every policy gives: for each submodule that was checked, a trust vector and the
# reason codes behind it. The values are those of AR4SI (draft-ietf-rats-ar4si §2.3); each
# rule starts from the unfavourable one and earns the better.
package touchstone

outcome[name] := {"trust_vector": trust_vector(facts), "reasons": reasons(facts)} if {
	some name, facts in input.checked
}

# A submodule of a kind we do not know says things that nobody here can weigh.
trust_vector(facts) := {"configuration": 96} if facts.kind == "unknown"

trust_vector(facts) := platform_vector(facts) if facts.kind == "platform"

trust_vector(facts) := model_vector(facts) if facts.kind == "model"

trust_vector(facts) := {"hardware": hardware(facts)} if facts.kind == "gpu"

reasons(facts) := sort(platform_reasons(facts)) if facts.kind == "platform"

reasons(facts) := [] if facts.kind != "platform"
