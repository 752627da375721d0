# What every policy must give: for each submodule that was checked, a trust vector and the codes
# of the reasons behind it. Each kind of submodule has a file of its own, which adds to this object.
# Values are named in ar4si/data.json, after AR4SI (draft-ietf-rats-ar4si §2.3). Each rule tries the
# better values first and ends with the worst.
package touchstone

# Nobody here can judge a submodule of an unknown kind.
outcome[name] := {
	"trust_vector": {"configuration": data.ar4si.configuration.forbidden},
	"reasons": [],
} if {
	some name, facts in input.checked
	facts.kind == "unknown"
}
