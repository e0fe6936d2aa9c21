-- Drops the applier's role: after teardown.sql has run in every database of the node.
-- Where another database still holds grants to it this fails and changes nothing.

drop role if exists synapsedb_applier;
