"""The $operations, one file each, named by the type and the code.

registry                          lists the operations, finds one and checks who may call it and with what
arguments                         reads the arguments of a call
everything                        is Patient/$everything and Patient/[id]/$everything
export                            is $export of the system, of patients and of a Group
meta                              is $meta at every level, and $meta-add and $meta-delete of an instance
reindex                           is $reindex
process_message                   is $process-message
validate                          is [type]/$validate and [type]/[id]/$validate
patient_pcp                       is Patient/[id]/$pcp
care_plan_changes                 is CarePlan/[id]/$changes
care_plan_summary                 is CarePlan/[id]/$summary
encounter_notices                 is Encounter/[id]/$notices
measure_evaluate                  is Measure/[id]/$evaluate-measure
worklist                          is Patient/$worklist and Group/[id]/$worklist
utilization                       is Patient/$utilization and Group/[id]/$utilization
attributed                        is Patient/$attributed and Group/[id]/$attributed
member_questions                  reads what these three are asked
subscription_status               is Subscription/$status and Subscription/[id]/$status
subscription_events               is Subscription/[id]/$events
subscription_resend               is Subscription/[id]/$resend
subscription_explain              is Subscription/[id]/$explain
subscription_dry_run              is Subscription/$dry-run
subscription_ws_binding_token     is Subscription/$get-ws-binding-token, and that of an instance

Each has an OperationDefinition in profiles/operations, by which calls are checked.
"""
