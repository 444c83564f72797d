// Package tenancy is the commands about the tree of resources and about who may do what in it: subscription, group, workspace, role.
//
// It decides nothing: the services do. What cannot be undone is asked about first.
//
// Failure: errors of the installation come as they came.
package tenancy
