//! What both daemons need.
