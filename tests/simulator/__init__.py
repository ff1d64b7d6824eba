"""A swarm in virtual time: thousands of nodes, hours in seconds, the shipping policies unchanged.

    scenario.py   what happens: sizes, churn, cuts, requests      churn.py   when each node comes, goes and comes back
    events.py     the queue of what happens next                  nodes.py   nodes, where they are, how fast, in which domain
    groups.py     groups and who knows what of them when          swarm.py   it all at work: presence, rounds, placements
    jobs.py       repairs under way, byte by byte                 reads.py   requests and their latency
    results.py    what came out, beside the least possible

    serving.py    who serves which layers, a simulation of its own   petals_rule.py   another's rule, beside it

Nothing here decides what to repair, when or where to: `erasure.repair`, `.presence`, `.standing`, `.placement` and `.durability` do. The
simulator decides what they see. Departures are seen after 5 s; a new holding or claim after 1 s to 2 min, by a lag drawn per observer
and event; over a cut not before it heals. What is simplified: the nodes of one side of a cut share one `Presence` (who is away
since when), transfers have constant rates, and `plan` is only called for groups of which the least informed node on a side would
say that fewer than r shards count: for all others it has nothing to do (tests/simulator/test_swarm.py tries that).
"""
